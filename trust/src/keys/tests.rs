//! What opens, what does not, and what a key file may look like.

use std::fs;

use super::*;

fn authorization(secret: &str) -> Vec<u8> {
    format!("Bearer {secret}").into_bytes()
}

fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[tokio::test]
async fn a_new_key_opens_its_scopes_and_nothing_else() {
    let (ask, admin) =
        (new_key("alice", &[Scope::Inference]).unwrap(), new_key("root", &[Scope::Admin]).unwrap());
    assert_ne!(ask.secret, admin.secret);
    assert!(!ask.entry.contains(&ask.secret[5..]), "a file holds hashes only");
    let (_folder, path) = file(&format!("{}{}", ask.entry, admin.entry));
    let keys = Keys::open(&path, None).unwrap();
    let open = |secret: &str, scope| keys.check(Some(&authorization(secret)), Some(scope));
    assert_eq!(open(&ask.secret, Scope::Inference).as_deref(), Ok("alice"));
    assert_eq!(open(&admin.secret, Scope::Metrics).as_deref(), Ok("root"));
    for (secret, scope) in [
        (&ask.secret, Scope::Admin),
        (&ask.secret, Scope::Metrics),
        (&admin.secret, Scope::Inference),
    ] {
        assert!(matches!(open(secret, scope), Err(Denied::Forbidden(_))));
    }
    let cut = &ask.secret[..ask.secret.len() - 1];
    for stranger in ["", cut, &ask.entry] {
        assert_eq!(open(stranger, Scope::Inference), Err(Denied::Unknown(EXPECTED)));
    }
    for value in [
        &b""[..],
        b"Bearer",
        b"Basic eDp5",
        ask.secret.as_bytes(),
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(keys.check(Some(value), None), Err(Denied::Unknown(EXPECTED)));
    }
    assert_eq!(keys.check(None, None), Err(Denied::Unknown(EXPECTED)));
    let small = format!("bearer {}", ask.secret);
    assert!(keys.check(Some(small.as_bytes()), None).is_ok());
}

#[tokio::test]
async fn a_file_without_keys_lets_nobody_in() {
    let (_folder, path) = file("");
    let keys = Keys::open(&path, None).unwrap();
    for value in [None, Some(&b"Bearer "[..]), Some(b"Bearer x")] {
        assert_eq!(keys.check(value, None), Err(Denied::Unknown(EXPECTED)));
    }
}

#[tokio::test]
async fn a_broken_file_is_told_in_one_sentence() {
    let good = new_key("a", &[Scope::Inference]).unwrap().entry;
    for (text, sentence) in [
        (good.replace("name = \"a\"", "name = \"a b\""), "expected 1 to 64 letters"),
        (good.replace("sha256 = \"", "sha256 = \"0"), "64 hexadecimal digits"),
        (good.replace("sha256 = \"", "sha256 = \"é"), "64 hexadecimal digits"),
        (good.replace("inference", "everything"), "unknown variant"),
        (good.replace("scopes", "scope"), "unknown field"),
        ("keys = 3".to_owned(), "invalid type"),
        ("[[keys]".to_owned(), "keys.toml: "),
    ] {
        let (_folder, path) = file(&text);
        let error = Keys::open(&path, None).unwrap_err().to_string();
        assert!(error.contains(sentence) && error.lines().count() == 1, "{error}");
    }
    let error = Keys::open(Path::new("/nowhere"), None).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere: cannot be read"), "{error}");
}

#[test]
fn a_name_that_cannot_stand_in_a_file_is_refused() {
    assert!(new_key("a\"\nscopes = [\"admin\"]", &[]).is_err());
    assert!(new_key("", &[Scope::Admin]).is_err());
}
