//! A waker ends the wait from any thread, before or during it, and no wake-up is lost.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::recorder::{Event, Recorder};
use common::seed;
use millrace_uring::{Driver, Options};

with_one_ring_and_three!(
    a_wake_before_the_wait_ends_it,
    a_wake_from_another_thread_ends_the_wait,
    no_wake_is_lost,
    a_waker_outlives_its_driver,
    a_wait_ends_with_its_timeout,
);

fn a_wake_before_the_wait_ends_it(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let waker = driver.waker();
    for _ in 0..3 {
        waker.wake();
        waker.clone().wake();
        driver.poll(Some(Duration::from_secs(20)), &mut recorder).unwrap();
        assert!(matches!(recorder.events[..], [Event::Woken]), "{:?}", recorder.events);
        recorder.events.clear();
    }
}

fn a_wake_from_another_thread_ends_the_wait(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let waker = driver.waker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        waker.wake();
    });
    let start = Instant::now();
    driver.poll(Some(Duration::from_secs(20)), &mut recorder).unwrap();
    assert!(start.elapsed() < Duration::from_secs(15), "the wait ended by its timeout");
    assert!(matches!(recorder.events[..], [Event::Woken]));
    thread.join().unwrap();
}

fn no_wake_is_lost(options: Options) {
    // Three threads put work down and ring; the driver waits without a timeout and must see every
    // piece. A lost ring hangs, which the watchdog turns into a failure.
    const PIECES: u64 = 60_000;
    let seed = seed();
    let mut driver = Driver::new(options.clone()).unwrap();
    let work = AtomicU64::new(0);
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (waker, work, seen) = (driver.waker(), &work, &seen);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ thread);
                for _ in 0..PIECES / 3 {
                    let mine = work.fetch_add(1, Ordering::Relaxed) + 1;
                    waker.wake();
                    if random.u32(0..4) == 0 {
                        // Waits until it is seen, so that the driver falls asleep in between.
                        let deadline = Instant::now() + Duration::from_secs(20);
                        while seen.load(Ordering::Acquire) < mine {
                            assert!(Instant::now() < deadline, "a wake-up was lost");
                            std::hint::spin_loop();
                        }
                    }
                }
            });
        }
        let mut recorder = Recorder::default();
        let start = Instant::now();
        while seen.load(Ordering::Relaxed) < PIECES {
            assert!(start.elapsed() < Duration::from_secs(60), "wake-ups were lost");
            driver.poll(Some(Duration::from_secs(25)), &mut recorder).unwrap();
            if recorder.events.drain(..).any(|event| matches!(event, Event::Woken)) {
                seen.store(work.load(Ordering::Relaxed), Ordering::Release);
            }
        }
    });
    eprintln!(
        "{} wake-ups reported, {} enters",
        driver.statistics().woken,
        driver.statistics().enters
    );
}

fn a_waker_outlives_its_driver(options: Options) {
    let driver = Driver::new(options.clone()).unwrap();
    let waker = driver.waker();
    drop(driver);
    waker.wake();
}

fn a_wait_ends_with_its_timeout(options: Options) {
    let mut driver = Driver::new(options.clone()).unwrap();
    let mut recorder = Recorder::default();
    let start = Instant::now();
    assert_eq!(driver.poll(Some(Duration::from_millis(60)), &mut recorder).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(driver.poll(Some(Duration::ZERO), &mut recorder).unwrap(), 0);
    assert!(recorder.events.is_empty());
}
