//! Who waits, for what and how long.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;
use yare_client::Cached;
use yare_metrics::text::Page;
use yare_scheduler::{Metrics, plugins::Events, pod::PodInfo, queue::Queue};

fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
    let object = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {"priority": priority, "schedulerName": "default-scheduler", "containers": []}});
    PodInfo::new(Cached::new(Bytes::from(object.to_string())).unwrap()).unwrap()
}

fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.pop(now)).map(|p| p.key().name.to_string()).collect()
}

#[test]
fn priority_first_then_age() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        queue.set(pod(name, priority), now);
    }
    assert_eq!(names(&mut queue, now), ["b", "d", "a", "c"]);
}

#[test]
fn an_unschedulable_pod_waits_for_an_event_that_helps_and_for_its_back_off() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let a = pod("a", 0);
    queue.set(a.clone(), now);
    assert_eq!(names(&mut queue, now), ["a"]);
    queue.unschedulable(a.key(), Events::POD_REMOVED, now);
    queue.event(Events::NODE_LABELS, now + Duration::from_secs(2));
    assert!(names(&mut queue, now + Duration::from_secs(20)).is_empty());
    queue.event(Events::POD_REMOVED, now);
    assert!(names(&mut queue, now + Duration::from_millis(900)).is_empty());
    assert_eq!(names(&mut queue, now + Duration::from_secs(1)), ["a"]);
    // The second failure backs off twice as long; an event after that is acted on at once.
    let later = now + Duration::from_secs(1);
    queue.unschedulable(a.key(), Events::POD_REMOVED, later);
    queue.event(Events::POD_REMOVED, later + Duration::from_secs(3));
    assert_eq!(names(&mut queue, later + Duration::from_secs(3)), ["a"]);
}

#[test]
fn an_event_during_the_attempt_is_not_missed() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let a = pod("a", 0);
    queue.set(a.clone(), now);
    names(&mut queue, now);
    queue.event(Events::NODE_ADDED, now);
    queue.unschedulable(a.key(), Events::NODE_ADDED, now);
    assert_eq!(names(&mut queue, now + Duration::from_secs(1)), ["a"]);
}

#[test]
fn nobody_waits_for_ever() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let a = pod("a", 0);
    queue.set(a.clone(), now);
    names(&mut queue, now);
    queue.unschedulable(a.key(), Events::NONE, now);
    assert!(names(&mut queue, now + Duration::from_secs(299)).is_empty());
    assert_eq!(names(&mut queue, now + Duration::from_secs(300)), ["a"]);
}

#[test]
fn a_deleted_pod_is_forgotten() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let a = pod("a", 0);
    queue.set(a.clone(), now);
    queue.remove(a.key());
    assert!(names(&mut queue, now).is_empty());
    assert_eq!(queue.depths(), [0; 4]);
}

#[test]
fn what_waits_where_and_why_is_counted() {
    let metrics = Arc::new(Metrics::default());
    let (mut queue, now) = (Queue::new(metrics.clone()), Instant::now());
    let (a, b) = (pod("a", 1), pod("b", 0));
    queue.set(a.clone(), now);
    queue.set(b.clone(), now);
    assert_eq!(queue.pop(now).unwrap().key(), a.key());
    queue.unschedulable(a.key(), Events::NODE_ADDED, now);
    queue.turned_down(a.key(), vec!["NodeResourcesFit"]);
    let page = || {
        let mut page = Page::new();
        metrics.expose(&mut page);
        page.finish()
    };
    let says = |page: &str, lines: &[&str]| {
        for line in lines {
            assert!(page.lines().any(|l| l == *line), "{line}\n{page}");
        }
    };
    says(
        &page(),
        &[
            "scheduler_pending_pods{queue=\"active\"} 1",
            "scheduler_pending_pods{queue=\"unschedulable\"} 1",
            "scheduler_queue_incoming_pods_total{event=\"UnschedulablePodAdd\",queue=\"active\"} 2",
            "scheduler_queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"} 1",
            "scheduler_unschedulable_pods{plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} 1",
        ],
    );
    queue.event(Events::NODE_ADDED, now);
    assert_eq!(names(&mut queue, now + Duration::from_secs(1)), ["a", "b"]);
    let attempts = queue.attempts(a.key()).unwrap();
    assert_eq!((attempts.count, attempts.first, attempts.this), (2, now, now + Duration::from_secs(1)));
    queue.remove(b.key());
    says(
        &page(),
        &[
            "scheduler_pending_pods{queue=\"active\"} 0",
            "scheduler_pending_pods{queue=\"backoff\"} 0",
            "scheduler_pending_pods{queue=\"unschedulable\"} 0",
            "scheduler_queue_incoming_pods_total{event=\"NodeAdd\",queue=\"backoff\"} 1",
            "scheduler_queue_incoming_pods_total{event=\"BackoffComplete\",queue=\"active\"} 1",
            "scheduler_unschedulable_pods{plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} 0",
        ],
    );
}
