//! `login`: whose token it is, what it may do, and what is said if it may not.

use emoji_lab::hub::{Access, HubEnv, Token, login_with};

use crate::assert_says;
use crate::stand_in::{Answer, StandIn};

#[test]
fn a_token_has_a_user_and_rights() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_annwrites", "write");
    hub.account("bob", "hf_bobreads", "read");
    let env = hub.env(home.path());
    let ann = login_with(&env, Some("hf_annwrites")).unwrap();
    assert_eq!((ann.user(), ann.access()), (Some("ann"), Some(&Access::Write)));
    assert_says(&ann.to_string(), &["Logged in as ann", "the argument", "can write", "lab"]);

    std::fs::write(&env.token_path, "hf_bobreads\n").unwrap();
    let bob = login_with(&env, None).unwrap();
    assert!(!bob.can_write_to("bob"));
    assert_says(&bob.to_string(), &["Logged in as bob", "the file", "only read", "write access"]);
}

#[test]
fn a_wrong_token_is_told_by_its_source() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    let env =
        HubEnv { token: Token::new("hf_mistyped").map(|token| (token, "HF_TOKEN")), ..hub.env(home.path()) };
    let error = login_with(&env, None).unwrap_err().to_string();
    assert_says(&error, &["HF_TOKEN", "mistyped, expired or revoked", "/settings/tokens"]);
    assert!(!error.contains("hf_mistyped"), "{error}");
}

#[test]
fn no_network_has_a_way_out() {
    let home = tempfile::tempdir().unwrap();
    let hub = StandIn::start();
    // A port that nothing listens on, and a name that is none.
    for (endpoint, host) in [("http://127.0.0.1:9", "127.0.0.1:9"), ("https://hub.invalid", "hub.invalid")] {
        let env = HubEnv { endpoint: endpoint.into(), ..hub.env(home.path()) };
        let error = login_with(&env, Some("hf_any")).unwrap_err().to_string();
        println!("{error}");
        assert_says(&error, &[&format!("no connection to {host}"), "HF_HUB_OFFLINE=1"]);
    }
}

#[test]
fn an_answer_that_is_not_the_hubs_is_told() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    hub.fault("GET", "whoami", 1, |_, _| {
        Answer::new(200).body(b"<html>Welcome to the hotel</html>".to_vec())
    });
    let error = login_with(&hub.env(home.path()), Some("hf_ann")).unwrap_err().to_string();
    assert_says(&error, &["does not answer as the Hub does", "HF_ENDPOINT"]);
}

#[test]
fn the_token_does_not_follow_a_redirect() {
    let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
    hub.account("ann", "hf_ann", "write");
    let elsewhere = format!("{}/steal", hub.storage);
    hub.fault("GET", "whoami", 1, move |_, _| Answer::new(302).with("location", &elsewhere));
    login_with(&hub.env(home.path()), Some("hf_ann")).unwrap_err();
    let seen = hub.seen();
    let stolen = seen.iter().find(|seen| seen.server == "storage").expect("the redirect was followed");
    assert_eq!(stolen.authorization, None);
    assert_eq!(seen[0].authorization.as_deref(), Some("Bearer hf_ann"));
}
