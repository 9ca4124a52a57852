use super::*;

#[path = "backlog_held_up_tests.rs"]
mod held_up;

const MARK: usize = 64;
const SMALL: usize = 100;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A backlog and its listener's mailbox, from which messages are taken in order.
#[derive(Default)]
struct Queue {
    backlog: Backlog<usize>,
    members: Vec<Member>,
    sent: Vec<usize>,
    length: usize,
    first: usize,
    now: Duration,
    /// Whether each connection may send.
    free: Vec<bool>,
}

impl Queue {
    fn with(connections: usize) -> Queue {
        Queue {
            members: vec![Member::default(); connections],
            sent: vec![0; connections],
            free: vec![true; connections],
            ..Queue::default()
        }
    }

    fn send(&mut self, who: usize, bytes: usize) {
        self.length += 1;
        self.sent[who] += 1;
        self.free[who] = self.backlog.sent(bytes, &mut self.members[who], MARK);
        if !self.free[who] {
            self.resume(who);
        }
    }

    fn resume(&mut self, who: usize) {
        match self
            .backlog
            .resume(who, &mut self.members[who], MARK, self.now)
        {
            Resume::Go => self.free[who] = true,
            Resume::Look(_) => _ = self.look(who),
            Resume::Wait(_) => {}
        }
    }

    fn look(&mut self, who: usize) -> Resume {
        let mut woken = Vec::new();
        let member = &mut self.members[who];
        let look = (self.backlog.sent, self.length);
        let answer = self
            .backlog
            .looked(who, member, MARK, look, self.now, &mut woken);
        self.free[who] = answer == Resume::Go;
        woken.into_iter().for_each(|other| self.resume(other));
        answer
    }

    /// The first connection that waits looks, as it does after each pause.
    fn poll(&mut self) {
        if let Some(first) = self.backlog.first_waiting() {
            self.look(first);
        }
    }

    /// All connections send as much as they may.
    fn flood(&mut self, bytes: usize) {
        while self.free.contains(&true) {
            // They share the processors, so they send in turn, and each time another one begins.
            self.first += 1;
            for who in 0..self.free.len() {
                let who = (self.first + who) % self.free.len();
                if self.free[who] {
                    self.send(who, bytes);
                }
            }
        }
    }
}

fn grants(queue: &Queue) -> Vec<usize> {
    queue.members.iter().map(|member| member.grant).collect()
}

fn waiting(queue: &Queue) -> Vec<usize> {
    queue.backlog.waiting.iter().map(|&(who, _)| who).collect()
}

#[test]
fn the_mailbox_of_a_listener_that_keeps_up_is_looked_at_once_per_mark() {
    let mut backlog = Backlog::default();
    let mut member = Member::default();
    for _ in 1..MARK {
        assert!(backlog.sent(SMALL, &mut member, MARK));
    }
    assert!(!backlog.sent(SMALL, &mut member, MARK));
    assert_eq!(
        backlog.resume(1, &mut member, MARK, ms(0)),
        Resume::Look(64)
    );
    let mut woken = Vec::new();
    let answer = backlog.looked(1, &mut member, MARK, (64, 0), ms(0), &mut woken);
    assert_eq!((answer, woken.len()), (Resume::Go, 0));
    assert_eq!((backlog.messages.len(), backlog.bytes), (0, 0));
}

#[test]
fn a_connection_is_paused_at_the_mark_and_resumed_at_half_of_it() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
    queue.length = MARK / 2 + 1;
    assert!(matches!(queue.look(0), Resume::Wait(_)));
    queue.length = MARK / 2;
    assert_eq!(queue.look(0), Resume::Go);
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
}

#[test]
fn connections_to_one_listener_share_the_mark_and_get_equal_shares() {
    for connections in [2, 8, 50, 100] {
        let mut queue = Queue::with(connections);
        let mut longest = 0;
        for _ in 0..3_000 {
            queue.flood(SMALL);
            longest = longest.max(queue.length);
            queue.length -= queue.length.min(10);
            queue.poll();
        }
        assert!(longest <= MARK + connections, "{longest}");
        let mean = queue.sent.iter().sum::<usize>() / connections;
        let least = *queue.sent.iter().min().unwrap();
        assert!(least * 10 >= mean * 9, "{connections}: {least} of {mean}");
    }
}

#[test]
fn connections_are_resumed_in_the_order_of_their_pauses() {
    let mut queue = Queue::with(3);
    for who in [2, 0, 1] {
        while queue.free[who] {
            queue.send(who, SMALL);
        }
    }
    assert_eq!(waiting(&queue), [2, 0, 1]);
    queue.length = 0;
    queue.poll();
    assert_eq!(grants(&queue), [21, 21, 21]);
    assert!(queue.backlog.waiting.is_empty());
}

#[test]
fn without_room_for_all_the_others_keep_waiting_in_their_order() {
    let mut queue = Queue::with(50);
    queue.flood(SMALL);
    let order: Vec<usize> = waiting(&queue);
    queue.length = MARK / 2;
    queue.poll();
    let (first, others) = order.split_at(MARK / 2);
    assert!(first.iter().all(|&who| queue.members[who].grant == 1));
    assert_eq!(waiting(&queue), others);
}

#[test]
fn an_unused_grant_is_given_to_others() {
    let mut queue = Queue::with(2);
    queue.flood(SMALL);
    queue.length = 0;
    queue.poll();
    assert_eq!(grants(&queue), [32, 32]);
    // The second connection has nothing to send.
    queue.free[1] = false;
    queue.backlog.give_back(&mut queue.members[1]);
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
}

#[test]
fn when_a_connection_ends_its_grant_is_free_and_the_next_one_looks() {
    let mut queue = Queue::with(3);
    queue.flood(SMALL);
    let [first, next] = [0, 1].map(|at| queue.backlog.waiting[at].0);
    let promoted = queue.backlog.leave(first, &mut queue.members[first]);
    assert_eq!(promoted, Some(next));
    queue.length = 0;
    queue.poll();
    for who in [0, 1, 2] {
        queue.backlog.leave(who, &mut queue.members[who]);
    }
    assert_eq!(queue.backlog.granted, 0);
    assert!(queue.backlog.waiting.is_empty() && queue.backlog.resumed.is_empty());
}

#[test]
fn a_connection_that_ends_before_it_knows_that_it_was_resumed_gives_back_its_grant() {
    let mut backlog = Backlog::default();
    let (mut member, mut woken) = (Member::default(), Vec::new());
    while backlog.sent(SMALL, &mut member, MARK) {}
    backlog.looked(1, &mut member, MARK, (64, MARK), ms(0), &mut woken);
    backlog.resume(2, &mut Member::default(), MARK, ms(0));
    let mut first = Member::default();
    assert_eq!(
        backlog.looked(1, &mut first, MARK, (64, 0), ms(1), &mut woken),
        Resume::Go
    );
    assert_eq!((first.grant, woken), (32, vec![2]));
    assert_eq!(backlog.leave(2, &mut Member::default()), None);
    assert_eq!(backlog.granted, 32);
}

#[test]
fn messages_sent_during_a_look_count_as_still_in_the_mailbox() {
    let mut backlog = Backlog::default();
    let (mut member, mut woken) = (Member::default(), Vec::new());
    while backlog.sent(SMALL, &mut member, MARK) {}
    assert_eq!(
        backlog.resume(1, &mut member, MARK, ms(0)),
        Resume::Look(64)
    );
    // The look found 10 messages. 5 more were sent after it.
    (0..5).for_each(|_| _ = backlog.sent(SMALL, &mut member, MARK));
    backlog.looked(1, &mut member, MARK, (64, 10), ms(0), &mut woken);
    assert_eq!(backlog.messages.len(), 15);
}

#[test]
fn of_two_connections_that_look_at_once_only_one_looks_again() {
    let mut backlog = Backlog::default();
    let (mut member, mut woken) = (Member::default(), Vec::new());
    while backlog.sent(SMALL, &mut member, MARK) {}
    for who in [1, 2] {
        assert_eq!(
            backlog.resume(who, &mut member, MARK, ms(0)),
            Resume::Look(64)
        );
    }
    let first = backlog.looked(1, &mut member, MARK, (64, MARK), ms(0), &mut woken);
    let second = backlog.looked(2, &mut member, MARK, (64, MARK), ms(0), &mut woken);
    assert_eq!(first, Resume::Wait(ms(1)));
    assert_eq!(second, Resume::Wait(HELD_UP));
}

#[test]
fn pauses_double_up_to_a_limit() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    for pause in [2, 4, 8, 16, 16] {
        assert_eq!(queue.look(0), Resume::Wait(ms(pause)));
    }
    queue.now = ms(250);
    assert_eq!(queue.look(0), Resume::Go);
    queue.flood(SMALL);
    queue.now = ms(2_000);
    let pauses: Vec<Resume> = (0..10).map(|_| queue.look(0)).collect();
    assert_eq!(pauses.last(), Some(&Resume::Wait(ms(128))));
}

#[test]
fn large_bodies_reach_the_limit_in_bytes_before_the_mark() {
    let mut queue = Queue::with(2);
    queue.flood(MAX_BYTES / 4);
    assert_eq!(queue.length, 5);
    queue.length = 2;
    queue.poll();
    assert!(!queue.free[0] && !queue.free[1]);
    queue.length = 1;
    queue.poll();
    assert!(queue.free[0] && queue.free[1]);
}

#[test]
fn messages_of_others_that_are_never_taken_do_not_stop_the_trials() {
    for others in [MARK / 2 + 1, MARK, MARK + 1, 10_000] {
        let mut queue = Queue::with(2);
        queue.flood(SMALL);
        // The listener takes our messages and leaves those of others in the mailbox.
        queue.length = others;
        let before = queue.sent[0] + queue.sent[1];
        for _ in 0..1_000 {
            queue.now += ms(10);
            queue.poll();
            queue.flood(SMALL);
            queue.length = others;
        }
        let through = queue.sent[0] + queue.sent[1] - before;
        assert!((35..=40).contains(&through), "{others}: {through}");
        assert!(queue.sent[0].abs_diff(queue.sent[1]) <= 2);
        // Messages that were taken are forgotten.
        let remembered = queue.backlog.messages.len();
        assert!(remembered <= MARK + 3, "{others}: {remembered}");
    }
}

#[test]
fn a_growing_number_of_messages_of_others_does_not_stop_the_trials() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    queue.length = 1_000;
    for n in 0..1_000 {
        queue.now += ms(10);
        queue.poll();
        queue.flood(SMALL);
        queue.length = 1_001 + n;
    }
    assert!(queue.sent[0] >= MARK + 4, "{}", queue.sent[0]);
}

#[test]
fn a_listener_that_takes_nothing_gets_one_trial_and_then_nothing() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    for _ in 0..10_000 {
        queue.now += ms(10);
        queue.poll();
        queue.flood(SMALL);
    }
    assert_eq!(queue.sent[0], MARK + 1);
}

#[test]
fn a_listener_that_takes_nothing_gets_no_more_than_the_limit_in_bytes_whoever_else_sends_to_it() {
    let mut queue = Queue::with(1);
    queue.flood(MAX_BYTES / 100);
    queue.length += 10;
    for _ in 0..100_000 {
        queue.now += ms(10);
        queue.poll();
        queue.flood(MAX_BYTES / 100);
    }
    assert!(queue.backlog.bytes <= MAX_BYTES + MAX_BYTES / 100);
    assert!(queue.sent[0] <= 101, "{}", queue.sent[0]);
}

#[test]
fn a_grant_is_limited_by_the_own_mark_of_the_connection() {
    let mut backlog = Backlog::default();
    let (mut member, mut woken) = (Member::default(), Vec::new());
    while backlog.sent(SMALL, &mut member, 1_000) {}
    backlog.looked(1, &mut member, 1_000, (1_000, 1_000), ms(0), &mut woken);
    backlog.resume(2, &mut Member::default(), 4, ms(0));
    let mut first = Member::default();
    backlog.looked(1, &mut first, 1_000, (1_000, 0), ms(1), &mut woken);
    let mut second = Member::default();
    assert_eq!(backlog.resume(2, &mut second, 4, ms(1)), Resume::Go);
    assert_eq!((first.grant, second.grant), (500, 1));
}

#[test]
fn a_slow_listener_gets_no_more_than_it_takes() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    queue.length += 100;
    for _ in 0..100 {
        for _ in 0..300 {
            queue.now += ms(10);
            queue.poll();
            queue.flood(SMALL);
        }
        queue.length -= 1;
    }
    assert!(queue.length <= MARK + 100 + 10, "{}", queue.length);

    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    for _ in 0..300 {
        queue.now += ms(300);
        queue.length -= 1;
        queue.poll();
        queue.flood(SMALL);
        assert!(queue.length <= MARK + 1, "{}", queue.length);
    }
}

#[test]
fn a_mark_of_one_or_zero_still_lets_messages_through() {
    for mark in [0, 1] {
        let mut backlog = Backlog::default();
        let (mut member, mut woken) = (Member::default(), Vec::new());
        assert!(!backlog.sent(SMALL, &mut member, mark));
        for _ in 0..10 {
            let sent = backlog.sent;
            assert_eq!(
                backlog.resume(1, &mut member, mark, ms(0)),
                Resume::Look(sent)
            );
            backlog.looked(1, &mut member, mark, (sent, 1), ms(0), &mut woken);
            let answer = backlog.looked(1, &mut member, mark, (sent, 0), ms(0), &mut woken);
            assert_eq!(answer, Resume::Go);
            assert!(!backlog.sent(SMALL, &mut member, mark));
        }
    }
}
