//! The command line of `portolan-control`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

/// The control plane of a Portolan cluster.
#[derive(Debug, Parser)]
#[command(name = "portolan-control", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the API server, controllers, scheduler and route distribution.
    Serve(Serve),
    /// Manage the tokens that nodes join with.
    Token {
        /// What to do with them.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Write everything that the store holds into a file, as of one moment; servers may go on meanwhile.
    Backup(Backup),
    /// Fill an empty store from a backup; no server may run on it yet.
    Restore(Restore),
}

/// Flags of `backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// The store, unless a server has it open that is not shared (embedded:FILE).
    #[arg(long, value_name = "STORE", required_unless_present = "kubeconfig")]
    pub store: Option<StoreAddress>,
    /// Ask a running server for it, as its administrator.
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    pub kubeconfig: Option<PathBuf>,
    /// How etcd and this program know each other.
    #[command(flatten)]
    pub etcd_tls: EtcdTls,
    /// Where to write it. Its secrets stay encrypted: keep the encryption key file with it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The store to fill, which must be empty.
    #[arg(long, value_name = "STORE")]
    pub store: StoreAddress,
    /// How etcd and this program know each other.
    #[command(flatten)]
    pub etcd_tls: EtcdTls,
}

/// How etcd and this program know each other.
#[derive(Clone, Debug, Default, Args)]
pub struct EtcdTls {
    /// The certificate authority of etcd's members, in PEM, for addresses with https.
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// This server's client certificate for etcd, in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// The key of --etcd-cert, in PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
}

/// Flags of `serve`.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Where to listen, as ADDRESS:PORT; [::]:PORT is IPv6 only. The first port is the kubeconfig's.
    #[arg(long, value_name = "ADDR:PORT", required = true)]
    pub listen: Vec<SocketAddr>,
    /// A name or address that clients reach this server by. The first is the kubeconfig's.
    #[arg(long, value_name = "HOST", required = true, value_parser = host)]
    pub advertise: Vec<String>,
    /// Where the cluster's state lies: embedded:FILE, or etcd:URL[,URL...].
    #[arg(long, value_name = "STORE")]
    pub store: StoreAddress,
    /// How etcd and this program know each other.
    #[command(flatten)]
    pub etcd_tls: EtcdTls,
    /// The keys that encrypt secrets in the store, one of 32 bytes in base64 a line: the first encrypts, all decrypt.
    /// Made where it is missing and nothing is encrypted yet; the same for all servers. Beside the file of an embedded
    /// store, as FILE.keys, it needs no naming.
    #[arg(long, value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// A server of the cluster to join, https://HOST:PORT: it hands over the keys, where --encryption-key-file is missing.
    #[arg(long, value_name = "URL", requires = "server_token_file")]
    pub join: Option<String>,
    /// A file with a token of `token create --server`, by which --join knows the server, and it us.
    #[arg(long, value_name = "FILE", requires = "join")]
    pub server_token_file: Option<PathBuf>,
    /// Where Services' addresses come from, one range a family, the primary family first.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    pub service_cidr: Vec<IpNet>,
    /// Where pods' addresses come from, one range a family; each node gets a /24 and a /64 of it.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.244.0.0/16,fd00:10:244::/48"
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// Which ports of the nodes Services may have.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub node_port_range: PortRange,
    /// Where to write the administrator's kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub admin_kubeconfig: PathBuf,
    /// Make a join token and write it here, unless a valid one is there.
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// How many nodes may join with the token of --join-token-file.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        requires = "join_token_file"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub join_token_uses: u32,
}

/// What to do with join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    Create(TokenCreate),
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Where the cluster is, and who asks.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// For control servers instead of nodes: whoever holds it gets the keys of all secrets.
    #[arg(long)]
    pub server: bool,
    /// How many nodes or servers may join with it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: u32,
    /// How long it is valid, for example 30m, 24h or 7d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub ttl: Duration,
}

/// Where the cluster's state lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// In one file, for a single server.
    Embedded(PathBuf),
    /// In an etcd, at these URLs.
    Etcd(Vec<String>),
}

impl FromStr for StoreAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("embedded", file)) if !file.is_empty() => Ok(Self::Embedded(file.into())),
            Some(("etcd", urls)) => {
                let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
                let known =
                    |url: &String| url.starts_with("http://") || url.starts_with("https://");
                if urls.iter().all(known) {
                    Ok(Self::Etcd(urls))
                } else {
                    Err("each address of etcd must be a URL like http://127.0.0.1:2379".to_owned())
                }
            }
            _ => Err("expected embedded:FILE or etcd:http://HOST:PORT[,...]".to_owned()),
        }
    }
}

/// "30000-32767".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-');
        let ends = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ends {
            Some((first, last)) if 0 < first && first <= last => Ok(Self(first..=last)),
            _ => Err("expected FIRST-LAST, for example 30000-32767".to_owned()),
        }
    }
}

/// One or two ranges, of different families.
pub fn check_families(flag: &str, cidrs: &[IpNet]) -> Result<(), String> {
    match cidrs {
        [_] | [IpNet::V4(_), IpNet::V6(_)] | [IpNet::V6(_), IpNet::V4(_)] => Ok(()),
        _ => Err(format!(
            "{flag} takes one range a family: one of IPv4, one of IPv6, or both"
        )),
    }
}

/// A name or address that a certificate can be for.
fn host(text: &str) -> Result<String, String> {
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a DNS name or an IP address".to_owned()),
    }
}

/// "90s", "30m", "24h", "7d".
fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number with s, m, h or d, for example 24h".to_owned();
    let (last, _) = text.char_indices().next_back().ok_or_else(wrong)?;
    let (number, unit) = text.split_at(last);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    // A century is for ever here, and keeps the end of its time a date that can be written.
    match number.checked_mul(seconds) {
        Some(seconds) if (1..100 * 366 * 24 * 60 * 60).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const SERVE: [&str; 9] = [
        "portolan-control",
        "serve",
        "--listen=127.0.0.1:6443",
        "--listen=[::1]:6443",
        "--advertise=127.0.0.1",
        "--store=embedded:/var/lib/portolan/store",
        "--admin-kubeconfig=admin.conf",
        "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
        "--node-port-range=30000-32767",
    ];

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        Cli::try_parse_from(SERVE).unwrap();
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            "--listen=6443",
            "--advertise=not a name!",
            "--advertise=10.0.0.1:6443",
            "--store=/var/lib/store",
            "--store=embedded:",
            "--store=etcd:127.0.0.1:2379",
            "--service-cidr=10.96.0.0",
            "--node-port-range=32767-30000",
            "--node-port-range=0-100",
            "--join-token-uses=0",
        ] {
            let flag = bad.split('=').next().unwrap();
            let rest = SERVE.iter().filter(|given| !given.starts_with(flag));
            Cli::try_parse_from(rest.chain([&bad])).expect_err(bad);
        }
    }

    #[test]
    fn stores_and_lifetimes_are_read() {
        let etcd = "etcd:http://a:2379,http://b:2379".parse();
        let urls = ["http://a:2379", "http://b:2379"].map(str::to_owned);
        assert_eq!(etcd, Ok(StoreAddress::Etcd(urls.to_vec())));
        assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(lifetime("7d"), Ok(Duration::from_hours(7 * 24)));
        for bad in ["", "h", "24", "0s", "-1h", "999999999999999999d", "1µ"] {
            lifetime(bad).expect_err(bad);
        }
    }

    #[test]
    fn ranges_are_one_a_family() {
        let cidrs = |text: &str| {
            text.split(',')
                .map(|cidr| cidr.parse().unwrap())
                .collect::<Vec<_>>()
        };
        check_families("--x", &cidrs("10.0.0.0/8,fd00::/64")).unwrap();
        check_families("--x", &cidrs("fd00::/64")).unwrap();
        check_families("--x", &cidrs("10.0.0.0/8,10.1.0.0/16")).unwrap_err();
    }
}
