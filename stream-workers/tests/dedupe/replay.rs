//! A record that dedupe could not take comes back once, and is no duplicate of itself.

use crate::house::House;

#[tokio::test]
async fn a_replayed_record_is_kept_once_however_often_it_is_replayed() {
    let house = House::open();
    let traces = [house.trace(1), house.trace(2)];
    let first = house.dead(&traces).await;
    house.mark(&traces, first).await;
    assert_eq!(house.kept().await, Vec::<u128>::new());
    house.replay(&traces, first).await;
    house.replay(&traces, first).await;
    assert_eq!(house.kept().await, [1, 2]);
    house.replay(&traces, first).await;
    assert_eq!(house.kept().await, [1, 2]);
    // Nor does the client bring it in again.
    house.append(&traces, None).await;
    assert_eq!(house.kept().await, [1, 2]);
}

#[tokio::test]
async fn a_trace_that_came_in_by_another_record_stays_the_only_one() {
    let house = House::open();
    let (one, two) = (house.trace(1), house.trace(2));
    // The mark of the first try was lost, so the client's second was kept.
    let first = house.dead(&[one.clone(), two.clone()]).await;
    house.append(std::slice::from_ref(&one), None).await;
    assert_eq!(house.kept().await, [1]);
    house.replay(&[one, two], first).await;
    assert_eq!(house.kept().await, [1, 2]);
}
