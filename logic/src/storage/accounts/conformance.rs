//! One suite that every [`AccountStore`] must pass, named after its promises.

use std::future::Future;

use super::{Account, AccountLogin, AccountStore, Exchange, Exchanged, ProfileChange};

/// Where stores of one kind come from: an empty one first, afterwards the same data again.
pub trait Bed: Send + Sync {
    /// The implementation under test.
    type Store: AccountStore;

    /// Opens it, after closing the one opened before.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Makes one test of every property, each on a bed of its own.
macro_rules! account_store_conformance_tests {
    ($bed:expr) => {
        $crate::storage::accounts::conformance::account_store_conformance_tests! { $bed;
            an_id_is_taken_once_whoever_asks_at_the_same_time,
            profiles_change_field_by_field,
            search_finds_by_id_and_name_each_once_and_page_by_page,
            refresh_tokens_are_good_for_one_exchange,
            logins_are_bounded_and_end_with_the_password,
        }
    };
    ($bed:expr; $($property:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::storage::accounts::conformance::$property(&$bed).await;
            }
        )+
    };
}
pub(crate) use account_store_conformance_tests;

fn account(user_id: &str, name: &str) -> Account {
    Account {
        user_id: user_id.into(),
        name: name.into(),
        avatar: "avatar".into(),
        extra: "{}".into(),
        password_hash: format!("hash of {user_id}"),
        created_at_ms: 7,
        updated_at_ms: 7,
    }
}

async fn get<S: AccountStore>(store: &S, user_id: &str) -> Option<Account> {
    store.accounts(vec![user_id.into()]).await.unwrap().remove(0)
}

pub async fn an_id_is_taken_once_whoever_asks_at_the_same_time(bed: &impl Bed) {
    let store = bed.open().await;
    assert!(!store.any().await.unwrap());
    let creating = (0..20).map(|n| store.create(account("alice", &format!("Alice {n}"))));
    let created = futures::future::join_all(creating).await;
    let winners: Vec<_> =
        created.into_iter().enumerate().filter(|(_, done)| *done.as_ref().unwrap()).collect();
    let [(winner, _)] = winners[..] else { panic!("{winners:?}") };
    assert_eq!(get(&store, "alice").await.unwrap().name, format!("Alice {winner}"));
    assert_eq!(get(&store, "Alice").await, None, "ids are as they are written");
    drop(store);
    let store = bed.open().await;
    assert!(store.any().await.unwrap());
    assert!(!store.create(account("alice", "again")).await.unwrap());
    let both = store.accounts(vec!["nobody".into(), "alice".into()]).await.unwrap();
    assert_eq!(both[0], None);
    assert_eq!(both[1], Some(account("alice", &format!("Alice {winner}"))));
}

pub async fn profiles_change_field_by_field(bed: &impl Bed) {
    let store = bed.open().await;
    assert!(store.create(account("alice", "Alice")).await.unwrap());
    let change = |name: Option<&str>, extra: Option<&str>| ProfileChange {
        name: name.map(Into::into),
        avatar: None,
        extra: extra.map(Into::into),
    };
    let updated = store.update("alice", change(None, Some("")), 9).await.unwrap().unwrap();
    assert_eq!(
        updated,
        Account { extra: String::new(), updated_at_ms: 9, ..account("alice", "Alice") }
    );
    let same = store.update("alice", change(Some("Alice"), None), 11).await.unwrap().unwrap();
    assert_eq!(same.updated_at_ms, 9, "nothing changed");
    assert_eq!(store.update("bob", change(Some("Bob"), None), 9).await.unwrap(), None);
    store.update("alice", change(Some("Zoe"), None), 12).await.unwrap().unwrap();
    assert_eq!(found(&store, "ali", 9).await, ["alice"], "by id");
    assert_eq!(found(&store, "zo", 9).await, ["alice"], "by the new name");
    store.update("alice", change(Some(""), None), 13).await.unwrap().unwrap();
    assert_eq!(found(&store, "zo", 9).await, [""; 0]);
}

async fn found<S: AccountStore>(store: &S, prefix: &str, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (vec![], String::new());
    loop {
        let page = store.search(prefix, &after, limit).await.unwrap();
        assert!(page.accounts.len() <= limit);
        all.extend(page.accounts.into_iter().map(|account| account.user_id));
        if page.next.is_empty() {
            return all;
        }
        after = page.next;
    }
}

pub async fn search_finds_by_id_and_name_each_once_and_page_by_page(bed: &impl Bed) {
    let store = bed.open().await;
    for (user_id, name) in [
        ("Anna", "Anna B"),
        ("anton", "zed"),
        ("b1", "ANABEL"),
        ("b2", "anabel"),
        ("b3", "\u{c4}nne"),
        ("an", ""),
        ("zz", "bo"),
    ] {
        assert!(store.create(account(user_id, name)).await.unwrap());
    }
    for limit in 1..8 {
        assert_eq!(
            found(&store, "AN", limit).await,
            ["an", "Anna", "anton", "b1", "b2"],
            "{limit}"
        );
        assert_eq!(found(&store, "\u{e4}n", limit).await, ["b3"]);
        assert_eq!(found(&store, "z", limit).await, ["zz", "anton"], "ids come first");
        assert_eq!(found(&store, "b", limit).await, ["b1", "b2", "b3", "zz"]);
        assert_eq!(found(&store, "nobody", limit).await, [""; 0]);
    }
    let page = store.search("an", "no page gave this", 9).await.unwrap();
    assert!(page.accounts.is_empty() && page.next.is_empty());
}

fn login(n: u8, user_id: &str) -> AccountLogin {
    AccountLogin {
        login_id: [n; 16],
        user_id: user_id.into(),
        secret_hash: [n; 32],
        created_at_ms: i64::from(n),
        expires_at_ms: 1_000,
    }
}

fn exchange(login: u8, shown: u8, next: u8, now_ms: i64) -> Exchange {
    Exchange {
        login_id: [login; 16],
        shown_hash: [shown; 32],
        next_hash: [next; 32],
        now_ms,
        expires_at_ms: now_ms + 1_000,
        grace_ms: 10,
    }
}

pub async fn refresh_tokens_are_good_for_one_exchange(bed: &impl Bed) {
    let store = bed.open().await;
    store.add_login(login(1, "alice"), 9).await.unwrap();
    let done = Exchanged::Done { user_id: "alice".into() };
    assert_eq!(store.exchange(exchange(2, 1, 50, 100)).await.unwrap(), Exchanged::Unknown);
    assert_eq!(store.exchange(exchange(1, 9, 50, 100)).await.unwrap(), Exchanged::Unknown);
    assert_eq!(store.exchange(exchange(1, 1, 50, 100)).await.unwrap(), done);
    // The answer was lost: the same token once more, within the grace.
    assert_eq!(store.exchange(exchange(1, 1, 51, 110)).await.unwrap(), done);
    assert_eq!(store.exchange(exchange(1, 50, 52, 110)).await.unwrap(), Exchanged::Unknown);
    drop(store);
    let store = bed.open().await;
    assert_eq!(store.exchange(exchange(1, 51, 53, 200)).await.unwrap(), done);
    // A copy of an old one shows up: nobody knows who is who, so the login ends for both.
    let reused = Exchanged::Reused { user_id: "alice".into() };
    assert_eq!(store.exchange(exchange(1, 51, 54, 211)).await.unwrap(), reused);
    assert_eq!(store.exchange(exchange(1, 53, 55, 212)).await.unwrap(), Exchanged::Unknown);

    store.add_login(login(2, "alice"), 9).await.unwrap();
    assert_eq!(store.exchange(exchange(2, 2, 60, 1_000)).await.unwrap(), Exchanged::Expired);
    assert_eq!(store.exchange(exchange(2, 2, 60, 100)).await.unwrap(), Exchanged::Unknown);
    store.add_login(login(3, "alice"), 9).await.unwrap();
    assert!(!store.end_login([3; 16], [4; 32]).await.unwrap());
    assert!(store.end_login([3; 16], [3; 32]).await.unwrap());
    assert_eq!(store.exchange(exchange(3, 3, 60, 100)).await.unwrap(), Exchanged::Unknown);
}

pub async fn logins_are_bounded_and_end_with_the_password(bed: &impl Bed) {
    let store = bed.open().await;
    for user_id in ["alice", "alicea"] {
        assert!(store.create(account(user_id, "A")).await.unwrap());
    }
    store.add_login(login(9, "alicea"), 3).await.unwrap();
    for n in 1..6 {
        store.add_login(login(n, "alice"), 3).await.unwrap();
    }
    for n in 1..6 {
        let exchanged = store.exchange(exchange(n, n, n, 100)).await.unwrap();
        assert_eq!(matches!(exchanged, Exchanged::Done { .. }), n > 2, "{n}");
    }
    assert!(!store.set_password("nobody", "new").await.unwrap());
    assert!(store.set_password("alice", "new").await.unwrap());
    assert_eq!(get(&store, "alice").await.unwrap().password_hash, "new");
    for n in 1..6 {
        assert_eq!(store.exchange(exchange(n, n, n, 100)).await.unwrap(), Exchanged::Unknown);
    }
    let other = store.exchange(exchange(9, 9, 9, 100)).await.unwrap();
    assert_eq!(other, Exchanged::Done { user_id: "alicea".into() }, "others are not touched");
}
