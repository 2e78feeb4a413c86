//! The way out of real sandboxes, with an Internet of the tests' own behind it.
//!
//! Nothing in belljar knows of these tests: it runs in a network namespace whose one link leads to another one, and there servers
//! hold a public address, a private one and the names of `outside.example`. So every check of the product holds as it does on any
//! host, and what these tests see is what an agent would.
//!
//! | what | tests |
//! |---|---|
//! | attempts to get out past the proxy's policy | `probes` |
//! | programs that agents use, led by their environment alone | `programs` |
//! | SOCKS with datagrams, DNS | `protocols` |
//! | TLS that is looked into, secrets, stored answers | `inspected` |
//! | programs and protocols within TLS that is looked into | `through` |
//! | programs that trust what the system trusts | `trust` |
//! | secrets, from where they are kept | `secrets` |
//! | a policy that changes while a task runs | `reload` |
//! | two tasks side by side, and the end of belljar itself | `tasks` |

mod inspected;
#[path = "../escape/jail.rs"]
#[allow(
    dead_code,
    reason = "written for attacks on the box, of which these are another kind"
)]
mod jail;
mod probes;
mod programs;
mod protocols;
mod reload;
mod secrets;
mod tasks;
mod through;
mod trust;
mod world;
