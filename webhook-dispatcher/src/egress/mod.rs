//! Where webhooks may go: the defence against being used to reach what only this machine can reach.
//!
//! `https` goes to public addresses; inside `webhooks.allow_networks`, and on loopback where that is
//! allowed, `http` does too. Pure: looking names up is the `client`'s, which connects to
//! the very addresses that [`Egress::admit`] let through.

mod address;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use panopticon_core::config::Config;
use url::{Host, Url};

use self::address::{Place, destination, place};

/// The longest URL that an endpoint may have.
pub const MAX_URL_BYTES: usize = 2_048;

/// Why a message may not go to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// It cannot be parsed.
    #[error("`url` is not a URL such as https://rp.example/hooks: {0}")]
    Syntax(#[from] url::ParseError),
    /// It is too long.
    #[error("`url` must be at most {MAX_URL_BYTES} bytes")]
    TooLong,
    /// Neither https nor http.
    #[error("`url` must begin with https://, not {0}://")]
    Scheme(String),
    /// A user name or password is in it.
    #[error("`url` must not contain a user name or password; messages are authenticated by their signature")]
    Credentials,
    /// It names no host.
    #[error("`url` must name a host")]
    NoHost,
    /// http to where only https may go.
    #[error("`url` must begin with https://: http is only for addresses inside `webhooks.allow_networks`")]
    PlainHttp,
    /// The host is, or its name leads to, an address that webhooks may not go to.
    #[error("ssrf_blocked: {address} is {why}; `webhooks.allow_networks` can permit networks of one's own")]
    Blocked {
        /// The address.
        address: IpAddr,
        /// What kind of address it is.
        why: &'static str,
    },
    /// The name leads nowhere.
    #[error("the name has no address")]
    NoAddress,
    /// A configured network cannot be parsed.
    #[error("`webhooks.allow_networks`: `{0}` is not a network such as 10.1.0.0/16")]
    Network(String),
}

impl EgressError {
    /// Whether it is about where a message would go, rather than about how the URL is written.
    pub const fn is_blocked(&self) -> bool {
        matches!(self, Self::Blocked { .. } | Self::PlainHttp)
    }
}

/// How a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Encrypted.
    Https,
    /// In clear text.
    Http,
}

/// Where webhooks may go.
#[derive(Debug, Clone)]
pub struct Egress {
    loopback: bool,
    networks: Vec<IpNet>,
}

impl Egress {
    /// The policy that `config` describes.
    pub fn new(config: &Config) -> Result<Self, EgressError> {
        let networks = config.webhooks.allow_networks.iter().map(|text| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| EgressError::Network(text.clone()))
        });
        Ok(Self { loopback: config.webhooks_to_loopback(), networks: networks.collect::<Result<_, _>>()? })
    }

    /// Checks what can be checked of an endpoint's URL without looking its name up; [`Egress::admit`]
    /// judges the addresses of the name when a message is sent.
    pub fn check_url(&self, url: &str) -> Result<(), EgressError> {
        self.target(url).map(drop)
    }

    /// The parsed URL and its scheme, checked like [`Egress::check_url`].
    pub(crate) fn target(&self, url: &str) -> Result<(Url, Scheme), EgressError> {
        if url.len() > MAX_URL_BYTES {
            return Err(EgressError::TooLong);
        }
        let url = Url::parse(url)?;
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            other => return Err(EgressError::Scheme(other.to_owned())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EgressError::Credentials);
        }
        match url.host() {
            None => return Err(EgressError::NoHost),
            Some(Host::Ipv4(address)) => self.check_address(scheme, address.into())?,
            Some(Host::Ipv6(address)) => self.check_address(scheme, address.into())?,
            Some(Host::Domain(name)) => self.check_name(scheme, name)?,
        }
        Ok((url, scheme))
    }

    fn check_name(&self, scheme: Scheme, name: &str) -> Result<(), EgressError> {
        let name = name.trim_end_matches('.');
        if name.is_empty() {
            return Err(EgressError::NoHost);
        }
        // RFC 6761 §6.3: such names are loopback wherever they are looked up.
        let is_local = name == "localhost" || name.ends_with(".localhost");
        if is_local && !self.loopback {
            return self.check_address(scheme, IpAddr::from([127, 0, 0, 1]));
        }
        if scheme == Scheme::Http && self.networks.is_empty() && !is_local {
            return Err(EgressError::PlainHttp);
        }
        Ok(())
    }

    /// Whether a connection may be made to this address.
    pub fn check_address(&self, scheme: Scheme, address: IpAddr) -> Result<(), EgressError> {
        let blocked = |why| Err(EgressError::Blocked { address, why });
        let target = destination(address);
        let place = place(address);
        let allowed = self.networks.iter().any(|network| network.contains(&target))
            || (place == Place::Loopback && self.loopback);
        match (place, scheme) {
            (Place::Metadata, _) => blocked("a cloud's metadata service"),
            (_, _) if allowed => Ok(()),
            (Place::Public, Scheme::Https) => Ok(()),
            (Place::Public, Scheme::Http) => Err(EgressError::PlainHttp),
            (Place::Loopback, _) => blocked("loopback"),
            (Place::Special(why), _) => blocked(why),
        }
    }

    /// Those of a name's addresses that may be connected to. One address that is refused spoils the name
    /// for http, where nothing proves who answers.
    pub fn admit(
        &self,
        scheme: Scheme,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, EgressError> {
        let mut admitted = Vec::new();
        let mut refused = None;
        for address in addresses {
            match self.check_address(scheme, address.ip()) {
                Ok(()) => admitted.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if admitted.is_empty() || scheme == Scheme::Http => Err(error),
            None if admitted.is_empty() => Err(EgressError::NoAddress),
            _ => Ok(admitted),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn egress(loopback: bool, networks: &[&str]) -> Egress {
        let mut config = Config::default();
        config.webhooks.allow_loopback = Some(loopback);
        config.webhooks.allow_networks = networks.iter().map(|&text| text.to_owned()).collect();
        Egress::new(&config).unwrap()
    }

    #[test]
    fn by_default_only_https_to_public_addresses_is_accepted() {
        let egress = egress(false, &[]);
        for good in ["https://rp.example/hooks", "https://rp.example:8443", "https://8.8.8.8/", "HTTPS://A.b"]
        {
            assert_eq!(egress.check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://rp.example/",
            "http://8.8.8.8/",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://localhost/",
            "https://a.localhost./",
            "https://169.254.169.254/latest/meta-data",
            "https://user@rp.example/",
            "https://:secret@rp.example/",
            "ftp://rp.example/",
            "file:///etc/passwd",
            "rp.example/hooks",
            "https://",
            "",
        ] {
            assert!(egress.check_url(bad).is_err(), "{bad}");
        }
        assert_eq!(egress.check_url(&format!("https://a/{}", "x".repeat(3_000))), Err(EgressError::TooLong));
    }

    #[test]
    fn an_allowed_network_takes_http_and_nothing_beside_it_does() {
        let egress = egress(false, &["10.1.0.0/16", "fd12::/16", "192.168.7.7"]);
        for good in [
            "http://10.1.2.3:8080/",
            "https://10.1.2.3/",
            "http://[fd12::1]/",
            "http://192.168.7.7/",
            "http://[::ffff:10.1.2.3]/",
            "http://rp.internal/",
        ] {
            assert_eq!(egress.check_url(good), Ok(()), "{good}");
        }
        for bad in ["http://10.2.0.1/", "https://192.168.7.8/", "http://127.0.0.1/", "http://8.8.8.8/"] {
            assert!(egress.check_url(bad).unwrap_err().is_blocked(), "{bad}");
        }
    }

    #[test]
    fn loopback_opens_loopback_only() {
        let egress = egress(true, &[]);
        for good in
            ["http://127.0.0.1:9/", "http://localhost:9/", "https://[::1]/", "http://[::ffff:127.0.0.1]/"]
        {
            assert_eq!(egress.check_url(good), Ok(()), "{good}");
        }
        for bad in ["http://10.0.0.1/", "https://10.0.0.1/", "http://rp.example/"] {
            assert!(egress.check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_services_stay_closed_even_where_everything_is_allowed() {
        let egress = egress(true, &["0.0.0.0/0", "::/0"]);
        assert_eq!(egress.check_url("http://10.0.0.1/"), Ok(()));
        for bad in ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://[::ffff:169.254.169.254]/"]
        {
            assert!(egress.check_url(bad).unwrap_err().is_blocked(), "{bad}");
        }
    }

    #[test]
    fn a_name_with_mixed_addresses_keeps_its_public_ones_for_https_and_is_refused_for_http() {
        let mixed = ["8.8.8.8:443".parse().unwrap(), "10.0.0.1:443".parse().unwrap()];
        let strict = egress(false, &[]);
        assert_eq!(strict.admit(Scheme::Https, mixed).unwrap(), mixed[..1]);
        assert!(strict.admit(Scheme::Https, mixed[1..].iter().copied()).unwrap_err().is_blocked());
        assert_eq!(egress(false, &["10.0.0.0/8"]).admit(Scheme::Http, mixed), Err(EgressError::PlainHttp));
        assert_eq!(strict.admit(Scheme::Https, []), Err(EgressError::NoAddress));
    }

    #[test]
    fn a_network_that_cannot_be_read_is_named() {
        let mut config = Config::default();
        config.webhooks.allow_networks = vec!["10.0.0.0/40".to_owned()];
        assert!(Egress::new(&config).unwrap_err().to_string().contains("10.0.0.0/40"));
    }

    proptest! {
        #[test]
        fn what_is_admitted_is_what_was_checked(bits: u32, http: bool) {
            let egress = egress(false, &["10.1.0.0/16"]);
            let scheme = if http { Scheme::Http } else { Scheme::Https };
            let ip = IpAddr::V4(bits.into());
            let url = format!("{}://{ip}/", if http { "http" } else { "https" });
            let checked = egress.check_url(&url).is_ok();
            prop_assert_eq!(checked, egress.admit(scheme, [SocketAddr::new(ip, 1)]).is_ok());
            if http && checked {
                prop_assert!(ip.to_string().starts_with("10.1."));
            }
        }
    }
}
