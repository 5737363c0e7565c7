//! A path on the wire. Linux names are bytes, JSON is Unicode, and none of them may get lost.
//!
//! `{"path": "/a/b"}` when the bytes are UTF-8; else `{"path": "/a/\u{fffd}", "path_bytes": "2f61…"}`,
//! where `path` is for people only and `path_bytes` (hexadecimal) is what counts.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path that survives JSON whatever its bytes are. Flatten it into the object it belongs to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WirePath(pub PathBuf);

/// The two fields, as they are written.
#[derive(Serialize, Deserialize)]
struct Fields {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let path_bytes = self.0.to_str().is_none().then(|| to_hex(self.0.as_os_str().as_bytes()));
        Fields { path: self.0.to_string_lossy().into_owned(), path_bytes }.serialize(s)
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(d)?;
        let bytes = match fields.path_bytes {
            Some(hex) => from_hex(&hex).ok_or_else(|| D::Error::custom("path_bytes is not hex"))?,
            None => fields.path.into_bytes(),
        };
        if bytes.contains(&0) {
            return Err(D::Error::custom("a path cannot contain a NUL byte"));
        }
        Ok(Self(OsString::from_vec(bytes).into()))
    }
}

impl WirePath {
    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<P: Into<PathBuf>> From<P> for WirePath {
    fn from(path: P) -> Self {
        Self(path.into())
    }
}

impl AsRef<Path> for WirePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Debug for WirePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(bytes: Vec<u8>) {
        let path = WirePath::from(OsString::from_vec(bytes));
        let json = serde_json::to_string(&path).expect("serialises");
        assert!(!json.contains('\n'), "one line per object: {json}");
        assert_eq!(serde_json::from_str::<WirePath>(&json).expect("parses"), path);
    }

    proptest! {
        #[test]
        fn any_bytes_survive(bytes in proptest::collection::vec(1u8.., 0..300)) {
            round_trip(bytes);
        }

        #[test]
        fn any_text_survives_readably(text in "[^\0]{0,100}") {
            let json = serde_json::to_value(WirePath::from(&text)).expect("serialises");
            prop_assert_eq!(&json["path"], &text);
            prop_assert!(json.get("path_bytes").is_none());
        }

        #[test]
        fn garbage_is_refused_not_a_panic(text in ".{0,40}") {
            let json = serde_json::json!({"path": "x", "path_bytes": text});
            if let Ok(path) = serde_json::from_value::<WirePath>(json) {
                prop_assert_eq!(to_hex(path.0.as_os_str().as_bytes()), text.to_lowercase());
            }
        }
    }

    #[test]
    fn golden() {
        let json = |bytes: &[u8]| {
            serde_json::to_string(&WirePath::from(OsString::from_vec(bytes.to_vec())))
                .expect("serialises")
        };
        assert_eq!(json(b"/a\n\"b"), r#"{"path":"/a\n\"b"}"#);
        assert_eq!(json(b"/\xff"), "{\"path\":\"/\u{fffd}\",\"path_bytes\":\"2fff\"}");
    }

    #[test]
    fn nul_is_refused() {
        for json in [r#"{"path":"a\u0000b"}"#, r#"{"path":"a","path_bytes":"6100"}"#] {
            assert!(serde_json::from_str::<WirePath>(json).is_err(), "{json}");
        }
    }
}
