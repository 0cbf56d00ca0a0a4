"""The Hub of a class, as kernel-setup.md has it; what differs from machine to machine comes from CLASS_… variables.

Users are those of the machine. Here they log in with one password made up for the test; a real class takes the
machine's own passwords (leave the authenticator out), or a university's log-in.
"""

import os

c = get_config()  # noqa: F821, JupyterHub's own.
setting = os.environ.__getitem__

c.JupyterHub.bind_url = f"http://127.0.0.1:{setting('CLASS_PORT')}"
c.JupyterHub.hub_port = int(setting("CLASS_HUB_PORT"))
c.ConfigurableHTTPProxy.command = [setting("CLASS_PROXY")]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{setting('CLASS_PROXY_PORT')}"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = setting("CLASS_PASSWORD")
c.Authenticator.allowed_users = set(setting("CLASS_STUDENTS").split())

# Everybody begins in the folder that /etc/skel gave them, and computes with what the teacher's folder has.
c.Spawner.notebook_dir = "~/emoji_lab"
c.Spawner.cmd = [setting("CLASS_PYTHON"), "-m", "jupyterhub.singleuser"]
# One thread each: with more students than cores, more would only wait for each other.
c.Spawner.environment = {name: setting(name) for name in setting("CLASS_SHARED").split()} | {"RAYON_NUM_THREADS": "1"}
c.Spawner.start_timeout = c.Spawner.http_timeout = 180
c.JupyterHub.concurrent_spawn_limit = 0

# Who presses the buttons in this test.
c.JupyterHub.services = [{"name": "class", "api_token": setting("CLASS_TOKEN")}]
c.JupyterHub.load_roles = [
    {"name": "class", "services": ["class"], "scopes": ["admin:users", "admin:servers", "access:servers", "tokens"]}
]
