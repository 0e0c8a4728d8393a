//! Where the server is: a URL as a user writes it, and the addresses that it stands for.

use std::fmt;
use std::net::SocketAddr;

use http::header::HeaderValue;

/// A server's URL, without a path of its own but for a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Host and port, as in the header `host`.
    pub authority: String,
    /// What stands before every path; empty, or with a slash at its beginning only.
    pub prefix: String,
}

/// Why a URL cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlError {
    /// It is none.
    Malformed(String),
    /// Its scheme is not `http`.
    Scheme(String),
    /// Its host has no address.
    Unknown(String, String),
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlError::Malformed(url) => {
                write!(f, "{url:?} is no URL; it looks like http://127.0.0.1:8080")
            }
            UrlError::Scheme(scheme) => write!(
                f,
                "{scheme}:// is not spoken here, only http://; give the address of the plain HTTP port"
            ),
            UrlError::Unknown(host, reason) => write!(f, "{host} has no address: {reason}"),
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
    /// The addresses of its host; port 80 where none is named.
    ///
    /// # Errors
    /// When there is none.
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
        // One is enough: `localhost` is often two, of which one refuses.
        match found.iter().find(|address| address.is_ipv4()) {
            Some(address) => Ok(vec![*address]),
            None if found.is_empty() => Err(unknown("nothing was found".to_owned())),
            None => Ok(found),
        }
    }

    /// The header `host`.
    ///
    /// # Errors
    /// When the URL cannot stand in a header.
    pub fn host(&self) -> Result<HeaderValue, UrlError> {
        HeaderValue::from_str(&self.authority)
            .map_err(|_| UrlError::Malformed(self.authority.clone()))
    }

    /// A path of the server.
    ///
    /// # Errors
    /// When it is none.
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
    fn what_cannot_be_asked_says_why() {
        let error = |text: &str| text.parse::<Url>().unwrap_err().to_string();
        assert!(error("https://a:1").contains("only http://"));
        assert!(error("http://").contains("looks like"));
        assert!(error("http://u:p@a:1").contains("looks like"));
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
