//! nginx and Caddy as child processes, before the service.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{eventually, free_port};

/// A web server; killed on drop.
pub(crate) struct WebServer {
    pub(crate) address: SocketAddr,
    server: Child,
    _folder: TempDir,
}

impl WebServer {
    /// nginx with the contents of its `http` block, from the address to listen on.
    pub(crate) async fn nginx(http: impl FnOnce(SocketAddr) -> String) -> Self {
        let (folder, address) = (TempDir::with_prefix("x402d-it-nginx-").unwrap(), address());
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {kind};\n"))
            .concat();
        let http = http(address);
        let text = format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{http}\n}}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let mut nginx = Command::new("nginx");
        nginx
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr"]);
        // On Debian it is where a user's PATH does not look.
        let path = std::env::var("PATH").unwrap_or_default();
        nginx.env("PATH", format!("{path}:/usr/sbin"));
        Self::start(nginx, address, folder).await
    }

    /// Caddy with a Caddyfile, from the address to listen on.
    pub(crate) async fn caddy(caddyfile: impl FnOnce(SocketAddr) -> String) -> Self {
        let (folder, address) = (TempDir::with_prefix("x402d-it-caddy-").unwrap(), address());
        let file = folder.path().join("Caddyfile");
        std::fs::write(&file, caddyfile(address)).unwrap();
        let mut caddy = Command::new("caddy");
        caddy
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(&file)
            .env("HOME", folder.path());
        Self::start(caddy, address, folder).await
    }

    async fn start(mut command: Command, address: SocketAddr, folder: TempDir) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.process_group(0);
        let mut server = match command.spawn() {
            Ok(server) => server,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("{command:?}: please install nginx and caddy, as scripts/test does")
            }
            Err(error) => panic!("{error}"),
        };
        eventually("a web server", Duration::from_secs(20), async || {
            if let Some(ended) = server.try_wait().unwrap() {
                let log = std::fs::read_to_string(folder.path().join("log"));
                panic!("{ended}: {log:?}");
            }
            TcpStream::connect(address).await.ok()
        })
        .await;
        Self {
            address,
            server,
            _folder: folder,
        }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
