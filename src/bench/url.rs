//! The server's URL as a user writes it, and its addresses.

use std::fmt;
use std::net::SocketAddr;

use http::header::HeaderValue;

/// URL of a server, with an optional path prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Host and port.
    pub authority: String,
    /// Prefix of every path: empty, or with a slash at its beginning and none at its end.
    pub prefix: String,
}

/// Why a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlError {
    /// The text is not a URL.
    Malformed(String),
    /// The scheme is not `http`.
    Scheme(String),
    /// The host (first) could not be resolved, for this reason.
    Unknown(String, String),
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlError::Malformed(url) => {
                write!(
                    f,
                    "{url:?} is not a URL; expected one like http://127.0.0.1:8080"
                )
            }
            UrlError::Scheme(scheme) => write!(
                f,
                "{scheme}:// is not supported, only http://; give the address of the plain HTTP port"
            ),
            UrlError::Unknown(host, reason) => write!(f, "cannot resolve {host}: {reason}"),
        }
    }
}

impl std::error::Error for UrlError {}

impl std::str::FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        let malformed = || UrlError::Malformed(text.to_owned());
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: http::Uri = with_scheme.parse().map_err(|_| malformed())?;
        match uri.scheme_str() {
            Some("http") => {}
            other => return Err(UrlError::Scheme(other.unwrap_or_default().to_owned())),
        }
        let authority = uri.authority().ok_or_else(malformed)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(malformed());
        }
        Ok(Url {
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

impl Url {
    /// Resolves the host. The port is 80 unless the URL has one.
    ///
    /// # Errors
    /// When the host has no address.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, UrlError> {
        let has_port = self
            .authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = match has_port {
            true => self.authority.clone(),
            false => format!("{}:80", self.authority),
        };
        let unknown = |reason: String| UrlError::Unknown(self.authority.clone(), reason);
        let found: Vec<_> = tokio::net::lookup_host(host)
            .await
            .map_err(|error| unknown(error.to_string()))?
            .collect();
        // The first IPv4 address only: `localhost` often has an IPv6 address too, at which nothing listens.
        match found.iter().find(|address| address.is_ipv4()) {
            Some(address) => Ok(vec![*address]),
            None if found.is_empty() => Err(unknown("no address found".to_owned())),
            None => Ok(found),
        }
    }

    /// Value of header `host`: the authority, without the port where that is the default.
    ///
    /// # Errors
    /// When the authority has characters that a header cannot have.
    pub fn host(&self) -> Result<HeaderValue, UrlError> {
        let host = self.authority.strip_suffix(":80");
        HeaderValue::from_str(host.unwrap_or(&self.authority))
            .map_err(|_| UrlError::Malformed(self.authority.clone()))
    }

    /// A path with the URL's prefix.
    ///
    /// # Errors
    /// When the result is not a valid path.
    pub fn path(&self, path: &str) -> Result<http::Uri, UrlError> {
        let path = format!("{}{path}", self.prefix);
        path.parse().map_err(|_| UrlError::Malformed(path.clone()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_with_and_without_scheme_slash_and_prefix() {
        for (text, authority, prefix) in [
            ("http://a:1", "a:1", ""),
            ("a:1", "a:1", ""),
            ("http://a:1/", "a:1", ""),
            ("http://[::1]:2/x/y/", "[::1]:2", "/x/y"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(
                (url.authority.as_str(), url.prefix.as_str()),
                (authority, prefix)
            );
        }
    }

    #[test]
    fn the_default_port_is_no_part_of_the_host_field() {
        for (text, host) in [
            ("http://a:80", "a"),
            ("http://a", "a"),
            ("http://[::1]:80", "[::1]"),
            ("http://a:8080", "a:8080"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.host().unwrap(), host, "{text}");
        }
    }

    #[test]
    fn an_unusable_url_is_refused_with_the_reason() {
        let error = |text: &str| text.parse::<Url>().unwrap_err().to_string();
        assert!(error("https://a:1").contains("only http://"));
        assert!(error("http://").contains("expected one like"));
        assert!(error("http://u:p@a:1").contains("expected one like"));
    }

    #[tokio::test]
    async fn a_url_without_port_means_port_80() {
        let url: Url = "http://127.0.0.1".parse().unwrap();
        assert_eq!(
            url.addresses().await.unwrap(),
            ["127.0.0.1:80".parse().unwrap()]
        );
    }
}
