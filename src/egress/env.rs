//! The environment that leads programs in a sandbox to the proxy. It is for their convenience: a program that ignores it has
//! no way out at all.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::tls::{AUTHORITY_FILE, JAVA_PASSWORD};
use crate::path::SandboxPath;

/// Programs that read the address of a proxy for http and https from one of these; most read both cases, curl the small one.
const HTTP_PROXY: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    // WebSocket clients.
    "WS_PROXY",
    "WSS_PROXY",
    "ws_proxy",
    "wss_proxy",
    // npm, pnpm and both generations of yarn.
    "npm_config_proxy",
    "npm_config_https_proxy",
    "YARN_HTTP_PROXY",
    "YARN_HTTPS_PROXY",
    // Programs that know neither of the above.
    "PIP_PROXY",
    "CARGO_HTTP_PROXY",
    "GLOBAL_AGENT_HTTP_PROXY",
];

/// Programs that read one proxy for all schemes.
const ALL_PROXY: &[&str] = &["ALL_PROXY", "all_proxy"];

const SOCKS_PROXY: &[&str] = &["SOCKS_PROXY", "socks_proxy"];

/// The sandbox's own loopback is reached without a proxy.
const NO_PROXY: &[&str] = &["NO_PROXY", "no_proxy", "npm_config_noproxy"];
const OWN_LOOPBACK: &str = "localhost,127.0.0.1,::1";

/// Where programs look for the bundle of certificates to trust.
const TRUST: &[&str] = &[
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "BUNDLE_SSL_CA_CERT",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
    "PERL_LWP_SSL_CA_FILE",
];

/// Programs that read no such variable (those of GnuTLS): one that names a file of their settings, the file, and what stands in it
/// around the bundle's path.
const TRUST_FILES: [(&str, &str, &str, &str); 2] = [
    ("WGETRC", "/run/belljar/wgetrc", "ca_certificate = ", "\n"),
    // Read before the machine's own settings, which add to it.
    (
        "APT_CONFIG",
        "/run/belljar/apt.conf",
        "Acquire::https::CAInfo \"",
        "\";\n",
    ),
];

/// Where programs look that are told nothing, by the habits of Debian, Fedora, SUSE and Alpine.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The folders in which OpenSSL looks up one authority, by a digest of its name.
const FOLDERS: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// The store of Debian's Java.
const JAVA_STORES: [&str; 1] = ["/etc/ssl/certs/java/cacerts"];

/// Node before 22.21 and 24 has a fetch that knows of no proxies, and there is no other way to tell it of one. A Node that knows, or a
/// program that never calls fetch, is left as it is.
const NODE_FETCH: (&str, &str) = ("/run/belljar/node-fetch.cjs", include_str!("env/node-fetch.cjs"));

/// Java reads certificates from a store of its own kind.
pub const JAVA_STORE: &str = "/run/belljar/trust.jks";

/// The variable with options for Java's launcher.
const JAVA_OPTIONS: &str = "JDK_JAVA_OPTIONS";

/// Variables for a sandbox whose proxy listens on these addresses.
pub fn proxy_env(http: SocketAddr, socks: Option<SocketAddr>) -> BTreeMap<String, String> {
    let http_url = format!("http://{http}");
    let mut env = BTreeMap::new();
    let mut set = |names: &[&str], value: &str| {
        for &name in names {
            env.insert(name.to_owned(), value.to_owned());
        }
    };
    set(HTTP_PROXY, &http_url);
    // CONNECT carries every protocol, and some clients fall over at the mere sight of a SOCKS URL without their extra package
    // for it; so only those that ask for SOCKS by its own name are told of it.
    set(ALL_PROXY, &http_url);
    if let Some(socks) = socks {
        // The "h" leaves names to the proxy: resolving them in the sandbox is not needed, and mostly refused.
        set(SOCKS_PROXY, &format!("socks5h://{socks}"));
    }
    set(NO_PROXY, OWN_LOOPBACK);
    // Node reads the variables only when it is told to.
    set(&["NODE_USE_ENV_PROXY"], "1");
    set(&["NODE_OPTIONS"], &format!("--require={}", NODE_FETCH.0));
    set(&["ELECTRON_GET_USE_PROXY"], "true");
    // Java reads none of them. Its launcher takes options from here; the virtual machine's own variable would be one that
    // changes every Java program, embedded ones too, and is looked at with suspicion.
    let (host, port) = (http.ip(), http.port());
    let java = format!(
        "-Dhttp.proxyHost={host} -Dhttp.proxyPort={port} -Dhttps.proxyHost={host} -Dhttps.proxyPort={port} -Dhttp.nonProxyHosts=localhost|127.*|[::1]"
    );
    set(&[JAVA_OPTIONS], &java);
    env
}

/// The files that [`proxy_env`] names, as paths inside with their text.
pub fn proxy_files() -> Vec<(&'static str, String)> {
    let (path, text) = NODE_FETCH;
    vec![(path, text.to_owned())]
}

/// Adds variables that make programs trust the bundle at this path, in place of the system's; some by way of [`trust_files`], and
/// Java by the store at [`JAVA_STORE`].
pub fn add_trust(env: &mut BTreeMap<String, String>, bundle: &SandboxPath) {
    let direct = TRUST.iter().map(|&name| (name, bundle.as_str()));
    let by_file = TRUST_FILES.iter().map(|&(name, file, ..)| (name, file));
    env.extend(
        direct
            .chain(by_file)
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let java = env.entry(JAVA_OPTIONS.to_owned()).or_default();
    java.push_str(&format!(
        " -Djavax.net.ssl.trustStore={JAVA_STORE} -Djavax.net.ssl.trustStoreType=jks -Djavax.net.ssl.trustStorePassword={JAVA_PASSWORD}"
    ));
}

/// The settings that [`add_trust`] names, as paths inside with their text.
pub fn trust_files(bundle: &SandboxPath) -> Vec<(&'static str, String)> {
    TRUST_FILES
        .iter()
        .map(|&(_, file, before, after)| (file, format!("{before}{}{after}", bundle.as_str())))
        .collect()
}

/// Links at the places where programs look that know none of these variables, as paths inside with what each leads to: to the bundle,
/// to a file with the task's authority alone, and to [`JAVA_STORE`].
pub fn trust_links(bundle: &SandboxPath, authority: &SandboxPath) -> Vec<(String, String)> {
    let to = |target: &str| {
        let target = target.to_owned();
        move |at: &&str| ((*at).to_owned(), target.clone())
    };
    let mut links: Vec<_> = BUNDLES.iter().map(to(bundle.as_str())).collect();
    links.extend(JAVA_STORES.iter().map(to(JAVA_STORE)));
    links.extend(FOLDERS.map(|folder| {
        let name = format!("{folder}/{AUTHORITY_FILE}");
        (name, authority.as_str().to_owned())
    }));
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_led_to_a_proxy_that_listens() {
        let http = SocketAddr::from(([127, 0, 0, 1], 3128));
        let socks = SocketAddr::from(([127, 0, 0, 1], 1080));
        let env = proxy_env(http, Some(socks));
        assert_eq!(env["https_proxy"], "http://127.0.0.1:3128");
        assert_eq!(env["ALL_PROXY"], "http://127.0.0.1:3128");
        assert_eq!(env["SOCKS_PROXY"], "socks5h://127.0.0.1:1080");
        assert_eq!(env["no_proxy"], "localhost,127.0.0.1,::1");
        assert!(env["JDK_JAVA_OPTIONS"].contains("-Dhttps.proxyPort=3128"));
        assert!(!proxy_env(http, None).contains_key("SOCKS_PROXY"));
    }

    /// Names that change what a judged command does are not ours to set. What Node is told to load is ours, and leads fetch alone.
    #[test]
    fn no_variable_changes_what_a_command_runs() {
        let http = SocketAddr::from(([127, 0, 0, 1], 3128));
        let mut env = proxy_env(http, None);
        add_trust(&mut env, &SandboxPath::new("/etc/ssl/bundle.pem").unwrap());
        assert!(
            env["JDK_JAVA_OPTIONS"].contains("-Dhttps.proxyPort=3128 "),
            "both stand there"
        );
        let changers = [
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "BASH_ENV",
            "ENV",
            "PROMPT_COMMAND",
            "PYTHONSTARTUP",
            "GIT_SSH_COMMAND",
            "GIT_EXTERNAL_DIFF",
            "PERL5OPT",
            "RUBYOPT",
            "JAVA_TOOL_OPTIONS",
        ];
        for name in changers {
            assert!(!env.contains_key(name), "{name}");
        }
    }
}
