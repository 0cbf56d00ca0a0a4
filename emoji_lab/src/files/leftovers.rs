//! What killed processes left: names that end in `.PID-N.part`.

use std::fs;
use std::io::Result;
use std::path::Path;

/// Removes from `folder` what a process that is no longer there left half-written of one of `names`:
/// `NAME.PID-N.part`, a file or a folder. What a live process writes stays, and so does every other name.
pub(crate) fn sweep(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_str().and_then(left_by_dead).is_some_and(&is_ours) {
            continue;
        }
        // A link is no leftover of ours: we make none.
        match entry.file_type()? {
            kind if kind.is_dir() => fs::remove_dir_all(entry.path())?,
            kind if kind.is_file() => fs::remove_file(entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

/// NAME, if a process that is no longer there left `NAME.PID-N.part`.
pub(crate) fn left_by_dead(name: &str) -> Option<&str> {
    let (of, pid) = split(name)?;
    (pid != std::process::id().to_string() && !is_another_live_process(pid)).then_some(of)
}

/// `NAME.PID-N.part` is NAME and PID.
fn split(name: &str) -> Option<(&str, &str)> {
    let (of, mark) = name.strip_suffix(".part")?.rsplit_once('.')?;
    Some((of, process_of(mark)?))
}

/// The process in the mark `PID-N` of an unfinished file, or in `PID`, as earlier releases wrote it.
pub(crate) fn process_of(mark: &str) -> Option<&str> {
    let (pid, call) = mark.split_once('-').unwrap_or((mark, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(call)).then_some(pid)
}

/// Whether a process of this number, another than this one, is there.
pub(crate) fn is_another_live_process(pid: &str) -> bool {
    let Some(pid) = pid.parse::<i32>().ok().filter(|pid| *pid > 0) else { return false };
    if u32::try_from(pid) == Ok(std::process::id()) {
        return false;
    }
    #[cfg(unix)]
    {
        // SAFETY: signal 0 is never delivered, the call only asks whether the process is there.
        let there = unsafe { libc::kill(pid, 0) } == 0;
        there || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }
    #[cfg(not(unix))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_processes_left_of_ours_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, here) = (i32::MAX, std::process::id());
        let stay = [
            "a.json".to_string(),
            "a.json.part".into(),
            "a.json.1.part".into(),
            format!("a.json.{here}.part"),
            format!("a.json.{here}-7.part"),
            "a.json.1-0.part".into(),
            "a.json.2147483647-.part".into(),
            "a.json.-1.part".into(),
            format!("b.json.{dead}.part"),
            format!("a.json.{dead}.part.bak"),
            "a.json.x1.part".into(),
        ];
        for name in stay.iter().chain([&format!("a.json.{dead}.part")]) {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("a.json.2147483646-12.part")).unwrap();
        sweep(dir.path(), |of| of == "a.json").unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut stay = stay.to_vec();
        stay.sort();
        assert_eq!(left, stay);
    }
}
