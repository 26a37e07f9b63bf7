//! What every store must do for schedules, of what it must do for people.

use super::people::{SHOP, at};
use crate::id::NotificationId;
use crate::store::{Incarnation, PeopleStore, RefusedDue, ScheduleRecord};

/// Of a schedule that is in a folder.
const FOLDER: Incarnation<'_> = Incarnation {
    uid: None,
    created_at: None,
};

pub(crate) async fn a_schedule_remembers_what_fired_and_what_was_missed(store: &impl PeopleStore) {
    let new = store.schedule(SHOP, "weekly", FOLDER, at(0)).await.unwrap();
    assert_eq!((new.created_at, new.last_due, new.missed), (at(0), None, 0));
    let again = store
        .schedule(SHOP, "weekly", FOLDER, at(99))
        .await
        .unwrap();
    assert_eq!(again, new, "it is created once");

    let sent = NotificationId::random();
    store
        .schedule_fired(SHOP, "weekly", at(60), Some(sent), 2)
        .await
        .unwrap();
    let fired = store
        .schedule(SHOP, "weekly", FOLDER, at(100))
        .await
        .unwrap();
    assert_eq!(
        (fired.last_due, fired.last_notification, fired.missed),
        (Some(at(60)), Some(sent), 2)
    );
    store
        .schedule_fired(SHOP, "weekly", at(120), None, 1)
        .await
        .unwrap();
    let skipped = store
        .schedule(SHOP, "weekly", FOLDER, at(130))
        .await
        .unwrap();
    assert_eq!(
        (skipped.last_due, skipped.last_fired),
        (Some(at(120)), Some(at(60))),
        "one that was skipped is done with, and did not fire"
    );
    assert_eq!(
        skipped.last_notification,
        Some(sent),
        "what was sent last is still known"
    );
    assert_eq!(skipped.missed, 4, "one before it, and itself");

    store
        .schedule_fired(SHOP, "weekly", at(60), Some(sent), 2)
        .await
        .unwrap();
    let repeated = store
        .schedule(SHOP, "weekly", FOLDER, at(130))
        .await
        .unwrap();
    assert_eq!(
        repeated, skipped,
        "a repeat of an earlier due time changes nothing"
    );
}

pub(crate) async fn a_schedule_remembers_why_it_is_refused_until_it_fires(
    store: &impl PeopleStore,
) {
    store
        .schedule(SHOP, "refused", FOLDER, at(0))
        .await
        .unwrap();
    let refused = async || {
        let record = store
            .schedule(SHOP, "refused", FOLDER, at(0))
            .await
            .unwrap();
        record.refused
    };
    assert_eq!(refused().await, None);
    let told = |due, declared, message: &str| RefusedDue {
        due: at(due),
        declared: [declared; 32],
        message: message.to_owned(),
    };
    for told in [
        told(60, 1, "may not"),
        told(60, 1, "no template"),
        told(60, 2, "no template"),
        told(120, 2, "no template"),
    ] {
        for _ in 0..2 {
            let noted = store.schedule_refused(SHOP, "refused", &told);
            noted.await.unwrap();
            assert_eq!(refused().await.as_ref(), Some(&told));
        }
    }
    let skipped = store.schedule_fired(SHOP, "refused", at(120), None, 0);
    skipped.await.unwrap();
    assert!(refused().await.is_some(), "nothing has been sent since");
    let sent = Some(NotificationId::random());
    let fired = store.schedule_fired(SHOP, "refused", at(180), sent, 0);
    fired.await.unwrap();
    assert_eq!(refused().await, None);
}

pub(crate) async fn a_schedule_begins_when_it_was_made_and_anew_when_it_is_made_anew(
    store: &impl PeopleStore,
) {
    let made = |uid, second| Incarnation {
        uid: Some(uid),
        created_at: Some(at(second)),
    };
    let (first, second) = (made("u-1", 10), made("u-2", 500));
    let ask = async |incarnation, now| {
        let record = store.schedule(SHOP, "anew", incarnation, at(now));
        record.await.unwrap()
    };
    let new = ask(first, 300).await;
    assert_eq!((new.uid.as_deref(), new.created_at), (Some("u-1"), at(10)));
    let sent = Some(NotificationId::random());
    let fired = store.schedule_fired(SHOP, "anew", at(360), sent, 2);
    fired.await.unwrap();
    let refused = RefusedDue {
        due: at(420),
        declared: [1; 32],
        message: "may not".to_owned(),
    };
    let noted = store.schedule_refused(SHOP, "anew", &refused);
    noted.await.unwrap();
    let stands = ask(first, 430).await;
    assert_eq!((stands.last_due, stands.missed), (Some(at(360)), 2));
    assert_eq!(stands.refused, Some(refused));
    assert_eq!(ask(FOLDER, 440).await, stands, "it has the name");

    let anew = ScheduleRecord {
        uid: Some("u-2".to_owned()),
        created_at: at(500),
        last_due: None,
        last_fired: None,
        last_notification: None,
        refused: None,
        missed: 0,
    };
    assert_eq!(ask(second, 510).await, anew);
    let late = ask(first, 520).await;
    assert_eq!(late, anew, "somebody has not seen yet that it is gone");
    // What was noted late for the one before brings no due time back from before this one.
    let noted = store.schedule_fired(SHOP, "anew", at(480), sent, 0);
    noted.await.unwrap();
    assert_eq!(ask(second, 530).await.done_until(), at(500));

    // Of one that was in a folder nothing is known but the name.
    let seen = store.schedule(SHOP, "moved", FOLDER, at(600)).await;
    assert_eq!(seen.unwrap().created_at, at(600));
    let moved = store.schedule(SHOP, "moved", second, at(610)).await;
    assert_eq!(moved.unwrap().created_at, at(500));
    let ahead = store.schedule(SHOP, "ahead", made("u-3", 900), at(700));
    let ahead = ahead.await.unwrap().created_at;
    assert_eq!(ahead, at(700), "whoever made it is ahead of the time");
}
