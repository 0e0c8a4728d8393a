//! The origins of `cors_allowed_origins`: the text of the setting, and the value that the program needs.
//!
//! Source: WHATWG Fetch, "`Origin` header": scheme, host and a port that is not the default, without a path.

use crate::limits::FromText;

/// The origins whose pages may read responses in a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`: every origin.
    Any,
    /// `none`: the balancer adds no field and answers no preflight.
    None,
    /// These, at least one.
    Listed(Vec<String>),
}

impl FromText for AllowedOrigins {
    fn from_text(text: &str) -> Option<Self> {
        match text.trim() {
            // As with sglang_router, the empty list is every origin.
            "*" | "" => Some(Self::Any),
            "none" => Some(Self::None),
            list => {
                let origins = list.split(',').map(str::trim);
                let origins = origins.map(|origin| is_origin(origin).then(|| origin.to_owned()));
                origins.collect::<Option<Vec<_>>>().map(Self::Listed)
            }
        }
    }
}

/// Whether a browser may send this text as an origin.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        // The origin of a local file, and of a frame in a sandbox.
        return text == "null";
    };
    let is_part = |part: &str, forbidden: &[char]| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic()) && !part.contains(forbidden)
    };
    is_part(scheme, &[':', '/', '*']) && is_part(host, &['/', '?', '#', '@', '*'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_and_a_host_and_no_path() {
        let listed = |text: &str| AllowedOrigins::from_text(text);
        for any in ["*", ""] {
            assert_eq!(listed(any), Some(AllowedOrigins::Any));
        }
        assert_eq!(listed("none"), Some(AllowedOrigins::None));
        let two = vec![
            "https://a.example".to_owned(),
            "http://localhost:3000".to_owned(),
        ];
        assert_eq!(
            listed("https://a.example, http://localhost:3000"),
            Some(AllowedOrigins::Listed(two))
        );
        for fine in ["null", "tauri://localhost", "http://[::1]:80"] {
            assert!(listed(fine).is_some(), "{fine}");
        }
        for wrong in [
            "a.example",
            "https://",
            "https://a/",
            "https://a/b",
            "https://u@a",
            "https://*.a",
            "*,https://a",
            "https://a,",
            "https://a b",
        ] {
            assert_eq!(listed(wrong), None, "{wrong}");
        }
    }
}
