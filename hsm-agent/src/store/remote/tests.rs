//! Against servers that misbehave. The good ones are in `tests/store_s3.rs`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server that gives `answer` to every request, or never answers; and its URL.
async fn serve(answer: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 8192];
                let _ = socket.read(&mut request).await;
                match answer {
                    Some(text) => drop(socket.write_all(text.as_bytes()).await),
                    None => std::future::pending().await,
                }
            });
        }
    });
    url
}

fn store(endpoint: String) -> RemoteStore {
    let params = S3Params {
        endpoint: Some(endpoint),
        bucket: "bucket".into(),
        prefix: "a/b".into(),
        region: None,
        access_key: Secret::new("access"),
        secret_key: Secret::new("topsecret"),
        allow_http: true,
        deadline: Duration::from_millis(700),
        retries: 0,
    };
    assert!(!format!("{params:?}").contains("topsecret"));
    let store = RemoteStore::s3(&params).expect("store");
    assert!(!format!("{store:?}").contains("topsecret"));
    store
}

fn key() -> ObjectKey {
    ObjectKey::new(ObjectId([9; 16]))
}

async fn get(answer: String) -> Result<Bytes> {
    store(serve(Some(answer)).await).get_range(&key(), 0..10).await
}

fn partial(range: &str, length: usize, body: &str) -> String {
    format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}\r\nContent-Length: {length}\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"e\"\r\nConnection: close\r\n\r\n{body}"
    )
}

fn status(status: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{header}Connection: close\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_good_answer_is_taken() {
    let got = get(partial("0-9/20", 10, "0123456789")).await;
    assert_eq!(got.expect("range"), "0123456789");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let to = format!("Location: http://{}/x\r\n", other.local_addr().expect("address"));
    for code in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let e = get(status(code, &to, "")).await.expect_err("redirect");
        assert!(matches!(e, StoreError::Failed { .. }), "{e:?}");
    }
    let visited = tokio::time::timeout(Duration::from_millis(50), other.accept()).await;
    assert!(visited.is_err(), "somebody came");
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable() {
    let e = store(serve(None).await).get_tail(&key(), 10).await.expect_err("no answer");
    assert!(e.is_retryable(), "{e:?}");
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable() {
    let e = store("http://127.0.0.1:1".into()).head(&key()).await.expect_err("nobody there");
    assert!(e.is_retryable(), "{e:?}");
}

#[tokio::test]
async fn an_answer_that_ends_early_is_unavailable() {
    let e = get(partial("0-9/20", 10, "01234")).await.expect_err("half an answer");
    assert!(e.is_retryable(), "{e:?}");
}

#[tokio::test]
async fn answers_to_other_questions_are_errors() {
    for range in ["1-10/20", "0-8/20", "0-10/20"] {
        get(partial(range, 10, "0123456789")).await.expect_err(range);
    }
    get(status("200 OK", "", "0123456789")).await.expect_err("whole object for a range");
    let e = get(partial("0-4/5", 5, "01234")).await.expect_err("short object");
    assert!(!e.is_retryable(), "{e:?}");
}

#[tokio::test]
async fn statuses_become_kinds() {
    let kind = |answer: String| async { get(answer).await.expect_err("status") };
    for passing in ["500 E", "503 Slow Down", "429 Too Many Requests"] {
        assert!(kind(status(passing, "", "")).await.is_retryable(), "{passing}");
    }
    let e = kind(status("404 Not Found", "", "<Code>NoSuchKey</Code>")).await;
    assert!(matches!(e, StoreError::NotFound { .. }), "{e:?}");
    let e = kind(status("404 Not Found", "", "<Code>NoSuchBucket</Code>")).await;
    assert!(matches!(e, StoreError::Failed { .. }), "a missing bucket is no missing object: {e:?}");
    let e = kind(status("403 Forbidden", "", "")).await;
    assert!(matches!(e, StoreError::Denied { .. }), "{e:?}");
    let e = kind(status("507 Insufficient Storage", "", "")).await;
    assert!(matches!(e, StoreError::Full { .. }), "{e:?}");
}

#[test]
fn listed_names_that_are_no_keys_are_skipped() {
    let prefix = Path::from("a/b");
    let key_of = |name: &str| key_of(&prefix, &Path::from(name));
    let key = key();
    assert_eq!(key_of(&format!("a/b/{key}")), Some(key));
    assert_eq!(key_of(&format!("a/{key}")), None);
    assert_eq!(key_of(&format!("a/b/c/{key}")), None);
    assert_eq!(key_of(&format!("a/b/{key}/x")), None);
    assert_eq!(key_of("a/b/check-1"), None);
}
