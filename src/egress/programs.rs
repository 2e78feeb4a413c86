//! Programs that agents use, led to the proxy by the variables of [`super::env`] alone, against servers on loopback. One that is
//! not installed is told and passed over.

use std::path::Path;
use std::process::Output;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::env::proxy_env;
use super::testing::{Fixture, Options, read_head};

/// Runs a program in a folder with nothing but the proxy's variables; `None` if it is not installed.
async fn run(fixture: &Fixture, folder: &Path, program: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .envs(proxy_env(fixture.http, Some(fixture.socks)))
        // What it names is in sandboxes only.
        .env_remove("NODE_OPTIONS")
        .kill_on_drop(true)
        .output()
        .await;
    match output {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Serves the files of a folder to every connection, one request each.
async fn serve_files(fixture: &Fixture, folder: &Path) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = fixture.server.accept().await.unwrap();
        connections.spawn(serve_file(stream, folder.to_owned()));
    }
}

async fn serve_file(mut stream: TcpStream, folder: std::path::PathBuf) {
    let head = read_head(&mut stream).await;
    let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap();
    let (status, body) = match std::fs::read(folder.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let kind = if path.ends_with("package") {
        "application/json"
    } else {
        "text/plain"
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
}

/// Whether a program got `expected` on stdout from an allowed host, and was refused another.
async fn fetches(program: &str, allowed: &[&str], refused: &[&str], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hello"), "hello from outside").unwrap();
    let package = r#"{"name":"package","dist-tags":{"latest":"1.2.3"},"versions":{"1.2.3":{"name":"package","version":"1.2.3","dist":{"tarball":"http://www.example.com/p.tgz","shasum":"0"}}}}"#;
    std::fs::write(folder.path().join("package"), package).unwrap();
    let fixture = Fixture::start(Options::default()).await;
    let ran = async {
        let good = run(&fixture, folder.path(), program, allowed).await?;
        let bad = run(&fixture, folder.path(), program, refused).await?;
        Some((good, bad))
    };
    let ran = tokio::select! {
        ran = ran => ran,
        () = serve_files(&fixture, folder.path()) => None,
    };
    let Some((good, bad)) = ran else { return };
    let stdout = String::from_utf8_lossy(&good.stdout);
    assert!(stdout.contains(expected), "{good:?}");
    assert!(
        !bad.status.success() || !String::from_utf8_lossy(&bad.stdout).contains(expected),
        "{bad:?}"
    );
    let (_, seen) = fixture.finish().await;
    let resolved = seen.resolved.lock().unwrap();
    assert!(
        !resolved.is_empty() && resolved.iter().all(|name| name == "www.example.com"),
        "{resolved:?}"
    );
}

#[tokio::test]
async fn curl_fetches_what_is_allowed() {
    let (allowed, refused) = ("http://www.example.com/hello", "http://denied.example.com/hello");
    fetches("curl", &["-sS", allowed], &["-sS", refused], "hello from outside").await;
}

#[tokio::test]
async fn wget_fetches_what_is_allowed() {
    let (allowed, refused) = ("http://www.example.com/hello", "http://denied.example.com/hello");
    fetches(
        "wget",
        &["-qO-", "-t1", allowed],
        &["-qO-", "-t1", refused],
        "hello from outside",
    )
    .await;
}

#[tokio::test]
async fn python_fetches_what_is_allowed() {
    let script = |host: &str| format!("import urllib.request as r; print(r.urlopen('http://{host}/hello').read())");
    let (allowed, refused) = (script("www.example.com"), script("denied.example.com"));
    fetches("python3", &["-c", &allowed], &["-c", &refused], "hello from outside").await;
}

#[tokio::test]
async fn npm_asks_its_registry() {
    let args = |host: &'static str| ["view", "package", "version", "--fetch-retries=0", "--registry", host];
    let (allowed, refused) = (args("http://www.example.com/"), args("http://denied.example.com/"));
    fetches("npm", &allowed, &refused, "1.2.3").await;
}

#[tokio::test]
async fn git_clones_a_repository() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(Options::default()).await;
    let script = "git init -q work && cd work && git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m one \
                  && git clone -q --bare . ../repo.git && cd ../repo.git && git update-server-info";
    let Some(made) = run(&fixture, folder.path(), "sh", &["-c", script]).await else {
        return;
    };
    if !made.status.success() {
        println!("skipped: git is not installed: {made:?}");
        return;
    }
    let clone = ["clone", "-q", "http://www.example.com/repo.git", "copy"];
    let refused = ["clone", "-q", "http://denied.example.com/repo.git", "other"];
    let ran = async {
        let good = run(&fixture, folder.path(), "git", &clone).await.unwrap();
        (good, run(&fixture, folder.path(), "git", &refused).await.unwrap())
    };
    let (good, bad) = tokio::select! {
        ran = ran => ran,
        () = serve_files(&fixture, folder.path()) => unreachable!("it serves for ever"),
    };
    assert!(
        good.status.success() && folder.path().join("copy/.git").is_dir(),
        "{good:?}"
    );
    let told = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && told.contains("403"), "{bad:?}");
    fixture.finish().await;
}

#[tokio::test]
async fn curl_speaks_tls_through_a_tunnel_to_the_host_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hello"), "hello from outside").unwrap();
    let fixture = Fixture::start(Options::default()).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let certificate = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=www.example.com \
                       -addext subjectAltName=DNS:www.example.com";
    let Some(made) = run(&fixture, folder.path(), "sh", &["-c", certificate]).await else {
        return;
    };
    if !made.status.success() {
        println!("skipped: openssl is not installed: {made:?}");
        return;
    }
    let _server = Command::new("openssl")
        .args([
            "s_server",
            "-quiet",
            "-WWW",
            "-key",
            "key",
            "-cert",
            "cert",
            "-accept",
            &free.to_string(),
        ])
        .current_dir(folder.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while TcpStream::connect(free).await.is_err() {
        tokio::task::yield_now().await;
    }
    let relay = async {
        loop {
            let (mut from, _) = fixture.server.accept().await.unwrap();
            let mut to = TcpStream::connect(free).await.unwrap();
            // The client's end is all that is looked at.
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        }
    };
    let fronted = [
        "-sS",
        "--cacert",
        "cert",
        "--connect-to",
        "denied.example.com:443:www.example.com:443",
        "https://denied.example.com/hello",
    ];
    let ran = async {
        let good = run(
            &fixture,
            folder.path(),
            "curl",
            &["-sS", "--cacert", "cert", "https://www.example.com/hello"],
        )
        .await?;
        let bad = run(&fixture, folder.path(), "curl", &fronted).await?;
        Some((good, bad))
    };
    let ran = tokio::select! {
        ran = ran => ran,
        () = relay => None,
    };
    let Some((good, bad)) = ran else { return };
    assert!(
        String::from_utf8_lossy(&good.stdout).contains("hello from outside"),
        "{good:?}"
    );
    assert!(!bad.status.success(), "the server name is not the tunnel's: {bad:?}");
    let mut left = Vec::new();
    let mut stream = fixture.send("CONNECT denied.example.com:443 HTTP/1.1\r\n\r\n").await;
    stream.read_to_end(&mut left).await.unwrap();
    assert!(left.starts_with(b"HTTP/1.1 403"));
    fixture.finish().await;
}
