use std::time::{Duration, Instant};

use millrace_protocol::chat::Message;

use super::{Feed, FeedSettings, Told, Turn};

const SETTINGS: FeedSettings = FeedSettings {
    settles_after: Duration::from_secs(30),
    hold_max: Duration::from_millis(200),
    held_messages_max: 100,
    conversations_max: 1_000,
};

fn told(conversation_id: &str, sequence: u64, version: u64, follows: u64) -> Told {
    let conversation_id = conversation_id.to_owned();
    let message = Message { conversation_id, sequence, ..Message::default() };
    let recipients = [].into();
    Told { message, version, follows, rewritten: false, omitted: false, recipients, except: None }
}

fn rewritten(conversation_id: &str, sequence: u64, version: u64) -> Told {
    Told { rewritten: true, ..told(conversation_id, sequence, version, 0) }
}

/// What a message brings out: itself, then those that waited for it. `!` marks what is left of one.
fn take(feed: &mut Feed, now: Instant, told: Told) -> Vec<String> {
    match feed.turn(now, told.place()) {
        Turn::Past => vec!["past".to_owned()],
        Turn::Later => {
            feed.hold(now, told);
            vec![]
        }
        Turn::Now => {
            let conversation_id = told.message.conversation_id.clone();
            let followers = feed.followers(now, &conversation_id);
            names(&[vec![told], followers].concat())
        }
    }
}

fn names(all: &[Told]) -> Vec<String> {
    let name = |told: &Told| {
        let mark = if told.rewritten { "!" } else { "" };
        format!("{}{}{mark}", told.message.conversation_id, told.message.sequence)
    };
    all.iter().map(name).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn what_comes_early_waits_for_those_before_it() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    assert_eq!(take(&mut feed, now, told("a", 1, 1, 0)), ["a1"]);
    assert_eq!(take(&mut feed, now, told("a", 4, 9, 8)), NOTHING);
    assert_eq!(take(&mut feed, now, told("a", 3, 8, 5)), NOTHING);
    assert_eq!(take(&mut feed, now, told("b", 1, 6, 0)), ["b1"], "others do not wait");
    assert_eq!(take(&mut feed, now, told("a", 2, 5, 1)), ["a2", "a3", "a4"]);
    assert_eq!(feed.held(), 0);
    assert_eq!(take(&mut feed, now, told("a", 5, 10, 9)), ["a5"]);
    assert_eq!(take(&mut feed, now, told("a", 5, 10, 9)), ["past"], "heard twice");
}

#[test]
fn the_first_of_a_quiet_conversation_waits_for_nobody_and_of_a_busy_one_it_does() {
    let (mut feed, now) = (Feed::new(SETTINGS, 100), Instant::now());
    // Stored before this process began to listen: whoever is here was caught up with it.
    assert_eq!(take(&mut feed, now, told("a", 7, 120, 90)), ["a7"]);
    // Its predecessor was stored since, and has not been heard of.
    assert_eq!(take(&mut feed, now, told("b", 7, 121, 110)), NOTHING);
    assert_eq!(take(&mut feed, now, told("b", 6, 110, 80)), ["b6", "b7"]);
}

#[test]
fn what_is_old_enough_counts_as_heard() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(take(&mut feed, at(0), told("a", 1, 50, 0)), ["a1"]);
    assert_eq!(take(&mut feed, at(20), told("x", 1, 51, 0)), ["x1"]);
    assert_eq!(take(&mut feed, at(29), told("b", 9, 60, 50)), NOTHING);
    assert_eq!(take(&mut feed, at(31), told("c", 9, 61, 50)), ["c9"]);
    assert_eq!(take(&mut feed, at(31), told("d", 9, 62, 51)), NOTHING);
    assert_eq!(feed.settled(), 50);
}

#[test]
fn who_waits_too_long_is_given_up_with_everything_behind_it() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    let at = |ms| now + Duration::from_millis(ms);
    take(&mut feed, at(0), told("a", 1, 1, 0));
    take(&mut feed, at(10), told("a", 3, 3, 2));
    take(&mut feed, at(150), told("a", 5, 5, 4));
    take(&mut feed, at(20), told("b", 8, 6, 4));
    assert_eq!(feed.due(), Some(at(210)));
    assert_eq!(names(&feed.give_up(at(209))), NOTHING);
    assert_eq!(names(&feed.give_up(at(215))), ["a3", "a5"]);
    assert_eq!(names(&feed.give_up(at(220))), ["b8"]);
    assert_eq!((feed.due(), feed.held()), (None, 0));
    // Those it was for were caught up with all of it.
    assert_eq!(take(&mut feed, at(230), told("a", 2, 2, 1)), ["past"]);
    assert_eq!(take(&mut feed, at(230), told("a", 6, 7, 5)), ["a6"]);
    assert_eq!(take(&mut feed, at(230), told("b", 9, 8, 6)), ["b9"]);
}

#[test]
fn a_wait_that_ended_well_does_not_end_another_one_early() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    let at = |ms| now + Duration::from_millis(ms);
    take(&mut feed, at(0), told("a", 1, 1, 0));
    take(&mut feed, at(0), told("a", 3, 3, 2));
    assert_eq!(take(&mut feed, at(100), told("a", 2, 2, 1)), ["a2", "a3"]);
    take(&mut feed, at(150), told("a", 5, 5, 4));
    assert_eq!(names(&feed.give_up(at(220))), NOTHING);
    assert_eq!(names(&feed.give_up(at(350))), ["a5"]);
}

#[test]
fn what_is_left_of_a_message_never_comes_before_the_message() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    take(&mut feed, now, told("a", 1, 1, 0));
    assert_eq!(take(&mut feed, now, rewritten("a", 1, 5)), ["a1!"], "it is out already");
    assert_eq!(take(&mut feed, now, rewritten("a", 3, 6)), NOTHING, "it is not");
    assert_eq!(take(&mut feed, now, told("a", 3, 3, 2)), NOTHING);
    assert_eq!(take(&mut feed, now, told("a", 2, 2, 1)), ["a2", "a3", "a3!"]);
    assert_eq!(take(&mut feed, now, rewritten("z", 9, 7)), ["z9!"], "nothing is known of it");
    // When what it waits for does not come, it goes out after the catch-up.
    let later = now + SETTINGS.hold_max;
    take(&mut feed, now, rewritten("a", 5, 8));
    assert_eq!(names(&feed.give_up(later)), ["a5!"]);
    assert_eq!(take(&mut feed, later, told("a", 4, 9, 3)), ["a4"]);
}

#[test]
fn too_much_that_waits_is_given_up_early_and_silent_conversations_are_forgotten() {
    let settings = FeedSettings { held_messages_max: 3, conversations_max: 2, ..SETTINGS };
    let (mut feed, now) = (Feed::new(settings, 0), Instant::now());
    let at = |ms| now + Duration::from_millis(ms);
    for (n, conversation) in ["a", "b", "c", "d"].into_iter().enumerate() {
        take(&mut feed, at(n as u64), told(conversation, 5, 10, 9));
    }
    assert_eq!(feed.held(), 4);
    assert_eq!(names(&feed.give_up(at(4))), ["a5"]);
    assert_eq!((feed.held(), feed.due()), (3, Some(at(201))));

    let mut feed = Feed::new(settings, 0);
    for n in 0..10_u64 {
        let conversation = format!("c{n}");
        assert_eq!(take(&mut feed, at(n), told(&conversation, 1, n + 1, 0)).len(), 1);
    }
    assert!(feed.conversations.len() <= 3, "{}", feed.conversations.len());
    // What was forgotten is not taken for settled.
    assert_eq!(take(&mut feed, at(11), told("c0", 2, 20, 1)), NOTHING);
    // Nothing is remembered for ever, whatever the bound.
    let mut feed = Feed::new(SETTINGS, 0);
    for n in 0..100_u64 {
        take(&mut feed, at(n), told(&format!("c{n}"), 1, n + 1, 0));
    }
    take(&mut feed, now + SETTINGS.settles_after * 3, told("new", 1, 500, 0));
    assert_eq!((feed.conversations.len(), feed.by_age.len()), (1, 1));
}

#[test]
fn after_a_loss_everything_begins_anew_from_what_the_catch_ups_read() {
    let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
    take(&mut feed, now, told("a", 1, 1, 0));
    take(&mut feed, now, told("a", 3, 3, 2));
    feed.begin_anew(40);
    assert_eq!((feed.held(), feed.due(), feed.settled()), (0, None, 40));
    assert_eq!(take(&mut feed, now, told("a", 5, 41, 40)), ["a5"]);
    assert_eq!(take(&mut feed, now, told("b", 5, 43, 42)), NOTHING);
}

#[test]
fn what_everybody_was_caught_up_with_is_past_however_late_its_event_comes() {
    let (mut feed, now) = (Feed::new(SETTINGS, 10), Instant::now());
    assert_eq!(take(&mut feed, now, told("a", 7, 10, 9)), ["past"], "stored before this began");
    assert_eq!(take(&mut feed, now, told("a", 8, 11, 10)), ["a8"]);
    feed.begin_anew(40);
    // Its teller's connection was broken; a later one of the conversation is in the store as well.
    assert_eq!(take(&mut feed, now, told("a", 9, 20, 11)), ["past"]);
    assert_eq!(take(&mut feed, now, told("a", 11, 41, 30)), ["a11"]);
    assert_eq!(take(&mut feed, now, told("a", 10, 30, 20)), ["past"]);
    assert_eq!(take(&mut feed, now, rewritten("a", 9, 42)), ["a9!"]);
}

/// Messages of a few conversations come in any order that keeps each teller's own; whatever comes out
/// is in order, once, and whole.
#[test]
fn any_order_of_arrival_comes_out_in_order_once_and_whole() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let (mut feed, now) = (Feed::new(SETTINGS, 0), Instant::now());
        let mut tellers: [std::collections::VecDeque<Told>; 3] = Default::default();
        let mut newest = [(0, 0); 4];
        for version in 1..=60 {
            let conversation = random.usize(..newest.len());
            let (sequence, follows) = newest[conversation];
            newest[conversation] = (sequence + 1, version);
            let told = told(["a", "b", "c", "d"][conversation], sequence + 1, version, follows);
            tellers[random.usize(..3)].push_back(told);
        }
        let mut out = Vec::new();
        while tellers.iter().any(|teller| !teller.is_empty()) {
            let teller = random.usize(..3);
            let Some(told) = tellers[teller].pop_front() else { continue };
            out.extend(take(&mut feed, now, told));
        }
        for (conversation, (sequence, _)) in ["a", "b", "c", "d"].iter().zip(newest) {
            let seen: Vec<_> = out.iter().filter(|name| name.starts_with(conversation)).collect();
            let wanted: Vec<_> = (1..=sequence).map(|n| format!("{conversation}{n}")).collect();
            assert_eq!(seen, wanted.iter().collect::<Vec<_>>(), "seed {seed}");
        }
        assert_eq!((out.len(), feed.held()), (60, 0));
    }
}
