use super::*;

/// Connections that wait for a full mailbox, in their order. The first one has just looked.
pub fn all_waiting(connections: usize) -> (Queue, Vec<usize>) {
    let mut queue = Queue::with(connections);
    queue.flood(SMALL);
    let order = waiting(&queue);
    assert_eq!(order.len(), connections);
    (queue, order)
}

#[test]
fn when_the_first_that_waits_is_held_up_another_looks_in_its_place() {
    let (mut queue, order) = all_waiting(2);
    let second = order[1];
    queue.length = 0;
    queue.now = HELD_UP - ms(1);
    queue.ask(second);
    assert!(!queue.free[second]);
    queue.now = HELD_UP;
    queue.ask(second);
    assert_eq!(queue.free, [true, true]);
}

/// The first of three connections goes on, and so may the others, who do not go on. The first one has
/// used its grant, and the mailbox is empty again.
fn two_held_up(do_they_know: bool) -> (Queue, Vec<usize>) {
    let (mut queue, order) = all_waiting(3);
    queue.length = 0;
    let first = queue.members[order[0]];
    assert_eq!(queue.backlog.poll(first, queue.now), Pace::Look);
    assert_eq!(queue.backlog.looked(first, 0, queue.now), Pace::Go);
    assert_eq!(queue.backlog.take_woken(), order[1..]);
    for &who in &order[1..] {
        if do_they_know {
            queue.ask(who);
        }
        queue.free[who] = false;
    }
    queue.free[order[0]] = true;
    queue.flood(SMALL);
    queue.length = 0;
    (queue, order)
}

#[test]
fn grants_that_are_not_used_go_back() {
    for do_they_know in [true, false] {
        let (mut queue, order) = two_held_up(do_they_know);
        queue.poll();
        assert!(!queue.free[order[0]]);
        queue.now = HELD_UP;
        queue.poll();
        assert!(queue.free[order[0]]);
    }
}

#[test]
fn a_grant_that_went_back_is_void() {
    let (mut queue, order) = two_held_up(true);
    queue.now = HELD_UP;
    queue.poll();
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
    // It sends the message that it has, and no more.
    queue.send(order[1], SMALL);
    assert!(!queue.free[order[1]]);
    assert_eq!(queue.backlog.granted, 0);
}

#[test]
fn grants_that_go_back_while_the_mailbox_is_full_leave_all_waiting() {
    let (mut queue, order) = two_held_up(false);
    while queue.length <= MARK {
        queue.send(order[0], SMALL);
    }
    queue.now = HELD_UP;
    queue.poll();
    // The first one gets a trial.
    let mut left = waiting(&queue);
    left.sort();
    let mut others = order[1..].to_vec();
    others.sort();
    assert_eq!(left, others);
}
