//! One suite of promises that every state store keeps.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "etcd")]
use crate::etcd::Etcd;
#[cfg(feature = "etcd")]
use coordinator::EtcdTls;
use coordinator::store::{
    Change, Commit, Entry, Expect, LeaseId, LocalStore, Outcome, Revision, Store, StoreError,
    Watch, Write, get,
};

fn put(key: &str, value: &str) -> Write {
    put_under(key, value, None)
}

fn put_under(key: &str, value: &str, lease: Option<LeaseId>) -> Write {
    Write::Put { key: key.to_owned(), value: value.into(), lease }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}

fn when(key: &str, modified: Revision) -> Vec<Expect> {
    vec![Expect { key: key.to_owned(), modified }]
}

async fn done(store: &dyn Store, when: Vec<Expect>, then: Vec<Write>) -> Revision {
    match store.commit(Commit { when, then }).await.unwrap() {
        Outcome::Done(revision) => revision,
        Outcome::Conflict => panic!("the commit met a conflict"),
    }
}

async fn conflicts(store: &dyn Store, when: Vec<Expect>, then: Vec<Write>) {
    let outcome = store.commit(Commit { when, then }).await.unwrap();
    assert_eq!(outcome, Outcome::Conflict);
}

async fn text(store: &dyn Store, key: &str) -> Option<String> {
    let entry = get(store, key).await.unwrap()?;
    Some(String::from_utf8(entry.value).unwrap())
}

/// A change, with the number left out.
async fn next(watch: &mut Watch) -> String {
    let change = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    match change.expect("no change came").unwrap() {
        Change::Put(Entry { key, value, .. }) => {
            format!("{key}={}", String::from_utf8(value).unwrap())
        }
        Change::Deleted { key, .. } => format!("{key} gone"),
    }
}

/// The promises. The store is empty and belongs to this suite.
async fn keeps_its_promises(store: Arc<dyn Store>) {
    entries_remember_their_changes(&*store).await;
    commits_happen_whole_or_not_at_all(&*store).await;
    ranges_are_sorted_and_exact(&*store).await;
    watches_tell_the_past_and_the_future(&*store).await;
    leases_take_their_entries_along(&*store).await;
    one_of_many_writers_wins(&store).await;
}

async fn entries_remember_their_changes(store: &dyn Store) {
    assert_eq!(get(store, "r/a").await.unwrap(), None);
    let first = done(store, vec![], vec![put("r/a", "1")]).await;
    let second = done(store, vec![], vec![put("r/a", "2")]).await;
    assert!(second > first);
    let entry = get(store, "r/a").await.unwrap().unwrap();
    assert_eq!((entry.created, entry.modified), (first, second));
    assert_eq!(entry.value, b"2");
    let third = done(store, vec![], vec![delete("r/a")]).await;
    assert!(third > second);
    assert_eq!(get(store, "r/a").await.unwrap(), None);
    let again = done(store, vec![], vec![put("r/a", "3")]).await;
    let entry = get(store, "r/a").await.unwrap().unwrap();
    assert_eq!((entry.created, entry.modified), (again, again), "it was made anew");
    assert!(store.range("").await.unwrap().revision >= again);
}

async fn commits_happen_whole_or_not_at_all(store: &dyn Store) {
    let first = done(store, when("c/a", 0), vec![put("c/a", "1"), put("c/b", "1")]).await;
    assert_eq!(get(store, "c/b").await.unwrap().unwrap().modified, first);
    conflicts(store, when("c/a", 0), vec![put("c/a", "2")]).await;
    conflicts(store, when("c/a", first + 1), vec![put("c/b", "2")]).await;
    let mut both = when("c/a", first);
    both.extend(when("c/x", 7));
    conflicts(store, both, vec![put("c/b", "2"), delete("c/a")]).await;
    assert_eq!(text(store, "c/a").await.as_deref(), Some("1"));
    assert_eq!(text(store, "c/b").await.as_deref(), Some("1"));
    done(store, when("c/a", first), vec![put("c/a", "2"), delete("c/b"), delete("c/none")]).await;
    assert_eq!(text(store, "c/a").await.as_deref(), Some("2"));
    assert_eq!(text(store, "c/b").await, None);
}

async fn ranges_are_sorted_and_exact(store: &dyn Store) {
    let keys = ["s/2", "s/10", "s/1", "s", "s0"];
    done(store, vec![], keys.iter().map(|key| put(key, "x")).collect()).await;
    let snapshot = store.range("s/").await.unwrap();
    let found: Vec<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(found, ["s/1", "s/10", "s/2"]);
    assert_eq!(get(store, "s").await.unwrap().unwrap().key, "s");
    assert_eq!(store.range("s/none").await.unwrap().entries, []);
}

async fn watches_tell_the_past_and_the_future(store: &dyn Store) {
    let from = done(store, vec![], vec![put("w/a", "1")]).await;
    done(store, vec![], vec![put("other", "1")]).await;
    done(store, vec![], vec![put("w/a", "2")]).await;
    let mut watch = store.watch("w/", from).await.unwrap();
    assert_eq!(next(&mut watch).await, "w/a=1");
    assert_eq!(next(&mut watch).await, "w/a=2");
    done(store, vec![], vec![put("w/b", "3"), put("other", "2")]).await;
    done(store, vec![], vec![delete("w/a")]).await;
    assert_eq!(next(&mut watch).await, "w/b=3");
    assert_eq!(next(&mut watch).await, "w/a gone");
    let mut later = store.watch("w/b", from + 3).await.unwrap();
    assert_eq!(next(&mut later).await, "w/b=3");
}

async fn leases_take_their_entries_along(store: &dyn Store) {
    let (short, long) = (Duration::from_secs(2), Duration::from_secs(60));
    let (dying, kept) = (store.grant(short).await.unwrap(), store.grant(long).await.unwrap());
    assert_ne!(dying, kept);
    let writes = vec![
        put_under("l/dying", "x", Some(dying)),
        put_under("l/kept", "x", Some(kept)),
        put_under("l/saved", "x", Some(dying)),
    ];
    let from = done(store, vec![], writes).await;
    // Written again without the lease, an entry outlives it.
    done(store, vec![], vec![put("l/saved", "y")]).await;
    let mut watch = store.watch("l/", from).await.unwrap();
    for expected in ["l/dying=x", "l/kept=x", "l/saved=x", "l/saved=y", "l/dying gone"] {
        assert_eq!(next(&mut watch).await, expected);
    }
    assert!(matches!(store.keep_alive(dying).await, Err(StoreError::LeaseGone)));
    store.revoke(dying).await.expect("ending what has ended is no error");
    let late = Commit { when: vec![], then: vec![put_under("l/late", "x", Some(dying))] };
    assert!(matches!(store.commit(late).await, Err(StoreError::LeaseGone)));
    store.keep_alive(kept).await.unwrap();
    store.revoke(kept).await.unwrap();
    assert_eq!(next(&mut watch).await, "l/kept gone");
    assert_eq!(text(store, "l/saved").await.as_deref(), Some("y"));
}

async fn one_of_many_writers_wins(store: &Arc<dyn Store>) {
    let start = done(&**store, vec![], vec![put("m", "0")]).await;
    let attempts = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let then = vec![put("m", &writer.to_string())];
            store.commit(Commit { when: when("m", start), then }).await.unwrap()
        })
    });
    let mut won = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        won += usize::from(attempt.await.unwrap() != Outcome::Conflict);
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn memory() {
    keeps_its_promises(Arc::new(LocalStore::in_memory())).await;
}

#[tokio::test]
async fn a_watch_that_asks_for_the_forgotten_is_told() {
    let store = LocalStore::in_memory();
    for value in 0..2000 {
        done(&store, vec![], vec![put("k", &value.to_string())]).await;
    }
    assert!(matches!(store.watch("k", 1).await, Err(StoreError::Missed)));
    let mut idle = store.watch("k", 2001).await.unwrap();
    for value in 0..300 {
        done(&store, vec![], vec![put("k", &value.to_string())]).await;
    }
    let missed = loop {
        if let Err(error) = idle.next().await {
            break error;
        }
    };
    assert!(matches!(missed, StoreError::Missed), "whoever does not listen falls behind");
}

#[tokio::test]
async fn file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    keeps_its_promises(Arc::new(LocalStore::in_file(&path).unwrap())).await;
}

#[tokio::test]
async fn a_file_remembers_entries_and_revisions_but_no_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let (before, revision) = {
        let store = LocalStore::in_file(&path).unwrap();
        let lease = store.grant(Duration::from_secs(60)).await.unwrap();
        done(&store, vec![], vec![put("a", "1"), put("b", "1")]).await;
        done(&store, vec![], vec![delete("b"), put("a", "2")]).await;
        let twice = LocalStore::in_file(&path);
        assert!(matches!(twice, Err(StoreError::Refused(_))), "a file has one owner");
        let revision = done(&store, vec![], vec![put_under("c", "1", Some(lease))]).await;
        (get(&store, "a").await.unwrap(), revision)
    };
    let store = LocalStore::in_file(&path).unwrap();
    let snapshot = store.range("").await.unwrap();
    assert_eq!(snapshot.entries, [before.unwrap()]);
    assert_eq!(snapshot.revision, revision);
    assert!(matches!(store.watch("a", revision).await, Err(StoreError::Missed)));
    assert!(store.watch("a", revision + 1).await.is_ok());
    assert!(done(&store, vec![], vec![put("a", "3")]).await > revision);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "hello ".repeat(1000)).unwrap();
    let error = LocalStore::in_file(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("the state store refuses: {}: ", path.display())),
        "{error}"
    );
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn etcd_cluster() {
    let server = Etcd::start().await;
    keeps_its_promises(Arc::new(server.store("one/").await)).await;
    let other = server.store("two/").await;
    assert_eq!(other.range("").await.unwrap().entries, [], "prefixes keep clusters apart");
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn an_etcd_that_is_away_is_unavailable_and_comes_back() {
    let mut server = Etcd::start().await;
    let store = server.store("one/").await;
    done(&store, vec![], vec![put("a", "1")]).await;
    let mut watch = store.watch("a", 1).await.unwrap();
    assert_eq!(next(&mut watch).await, "a=1");
    server.stop();
    assert!(matches!(get(&store, "a").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(watch.next().await, Err(StoreError::Unavailable(_))));
    server.start_again().await;
    assert_eq!(text(&store, "a").await.as_deref(), Some("1"));
}

/// etcd sees a certificate of its authority and shows one; everybody else gets nothing.
#[cfg(feature = "etcd")]
#[tokio::test]
async fn an_etcd_with_certificates_is_spoken_to_by_tls() {
    let server = Etcd::start_secured().await;
    keeps_its_promises(Arc::new(server.store("one/").await)).await;

    let whole = server.tls().unwrap();
    let nameless = EtcdTls { certificate: None, key: None, ..whole.clone() };
    let nameless = server.store_by("one/", Some(nameless)).await.unwrap();
    assert!(matches!(get(&nameless, "a").await, Err(StoreError::Unavailable(_))));
    let other = Etcd::start_secured().await;
    let stranger = EtcdTls { authority: other.tls().unwrap().authority, ..whole.clone() };
    let stranger = server.store_by("one/", Some(stranger)).await.unwrap();
    assert!(matches!(get(&stranger, "a").await, Err(StoreError::Unavailable(_))));

    let notes = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(notes.path(), "hello").unwrap();
    let empty = EtcdTls { authority: notes.path().to_owned(), ..whole.clone() };
    let gone = EtcdTls { key: Some("/nowhere/key.pem".into()), ..whole };
    for (tls, part) in [(empty, "found no PEM"), (gone, "/nowhere/key.pem: No such file")] {
        let error = server.store_by("one/", Some(tls)).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
