use super::*;

#[path = "backlog_held_up_tests.rs"]
mod held_up;

const MARK: usize = 64;
const SMALL: usize = 100;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A backlog and its listener's mailbox, from which messages are taken in order. Connections are numbered.
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
        let mut backlog = Backlog::default();
        Queue {
            members: (0..connections)
                .map(|who| backlog.join(who, MARK))
                .collect(),
            backlog,
            sent: vec![0; connections],
            free: vec![true; connections],
            ..Queue::default()
        }
    }

    fn send(&mut self, who: usize, bytes: usize) {
        self.length += 1;
        self.sent[who] += 1;
        self.free[who] = self.backlog.sent(self.members[who], bytes);
        check(&self.backlog);
        if !self.free[who] {
            self.ask(who);
        }
    }

    fn ask(&mut self, who: usize) {
        let pace = self.backlog.poll(self.members[who], self.now);
        check(&self.backlog);
        match pace {
            Pace::Go => self.free[who] = true,
            Pace::Look => _ = self.answer(who),
            Pace::Wait(_) => {}
        }
    }

    fn look(&mut self, who: usize) -> Pace {
        match self.backlog.poll(self.members[who], self.now) {
            Pace::Look => self.answer(who),
            pace => pace,
        }
    }

    fn answer(&mut self, who: usize) -> Pace {
        let pace = self
            .backlog
            .looked(self.members[who], self.length, self.now);
        self.free[who] = pace == Pace::Go;
        check(&self.backlog);
        for other in self.backlog.take_woken() {
            self.ask(other);
        }
        pace
    }

    /// The first connection that waits looks, as it does after each pause.
    fn poll(&mut self) {
        if let Some(&first) = self.backlog.waiting.front() {
            self.look(self.backlog.connections[&first].key);
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

/// What has to be true after every operation.
fn check(backlog: &Backlog<usize>) {
    let mut waiting: Vec<Member> = backlog.waiting.iter().copied().collect();
    waiting.sort();
    let states = backlog.connections.iter();
    let in_state =
        |&(_, connection): &(&Member, &Connection<usize>)| connection.state == State::Waiting;
    let told: Vec<Member> = states.filter(in_state).map(|(&member, _)| member).collect();
    assert_eq!(waiting, told, "who waits is in the queue once");
    let members = backlog.connections.keys();
    let granted: usize = members.map(|&member| grant(backlog, member)).sum();
    assert_eq!(backlog.granted, granted, "the sum of all grants");
    let reserved: usize = backlog.connections.values().map(|c| c.reserved).sum();
    assert_eq!(backlog.reserved, reserved, "the sum of all reservations");
    // Whoever was woken, some of those that wait stay behind: their first one has to look.
    let woken = |state| matches!(state, State::Woken { .. });
    let hands_out = backlog
        .woken
        .iter()
        .any(|m| woken(backlog.connections[m].state));
    if let Some(first) = backlog.waiting.front()
        && hands_out
    {
        assert!(
            backlog.woken.contains(first),
            "the first that waits is told"
        );
    }
}

fn grant(backlog: &Backlog<usize>, member: Member) -> usize {
    match backlog.connections[&member].state {
        State::Sending { grant } | State::Woken { grant } => grant,
        State::Waiting => 0,
    }
}

fn grants(queue: &Queue) -> Vec<usize> {
    let grant = |&member: &Member| grant(&queue.backlog, member);
    queue.members.iter().map(grant).collect()
}

fn waiting(queue: &Queue) -> Vec<usize> {
    let key = |member: &Member| queue.backlog.connections[member].key;
    queue.backlog.waiting.iter().map(key).collect()
}

/// A backlog whose first connection has filled the mailbox, and another connection.
fn filled() -> (Backlog<usize>, [Member; 2]) {
    let mut backlog = Backlog::default();
    let members = [backlog.join(1, MARK), backlog.join(2, MARK)];
    while backlog.sent(members[0], SMALL) {}
    (backlog, members)
}

#[test]
fn the_mailbox_of_a_listener_that_keeps_up_is_looked_at_once_per_mark() {
    let mut backlog = Backlog::default();
    let member = backlog.join(1, MARK);
    for _ in 1..MARK {
        assert!(backlog.sent(member, SMALL));
    }
    assert!(!backlog.sent(member, SMALL));
    assert_eq!(backlog.poll(member, ms(0)), Pace::Look);
    assert_eq!(backlog.looked(member, 0, ms(0)), Pace::Go);
    assert_eq!(backlog.take_woken(), []);
    assert_eq!((backlog.messages.len(), backlog.bytes), (0, 0));
}

#[test]
fn what_is_being_made_takes_room_too() {
    let mut backlog = Backlog::default();
    let [one, other] = [backlog.join(0, MARK), backlog.join(1, MARK)];
    backlog.reserve(one, MAX_BYTES - 1);
    check(&backlog);
    assert!(backlog.may_begin(other));
    backlog.reserve(one, MAX_BYTES);
    assert!(!backlog.may_begin(other));
    assert!(backlog.may_begin(one), "it has what it reserved itself");
    assert!(!backlog.sent(other, SMALL));
    assert_eq!(backlog.poll(other, ms(0)), Pace::Look);
    assert!(matches!(backlog.looked(other, 0, ms(0)), Pace::Wait(_)));
    // It is sent.
    backlog.reserve(one, 0);
    check(&backlog);
    assert!(!backlog.sent(one, MAX_BYTES));
    // A connection that leaves takes its reservation along.
    backlog.reserve(one, SMALL);
    backlog.leave(one);
    check(&backlog);
    assert_eq!(backlog.reserved, 0);
    assert!(!backlog.may_begin(other), "what was sent is still there");
}

#[test]
fn a_connection_is_paused_at_the_mark_and_resumed_at_half_of_it() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
    queue.length = MARK / 2 + 1;
    assert!(matches!(queue.look(0), Pace::Wait(_)));
    queue.length = MARK / 2;
    assert_eq!(queue.look(0), Pace::Go);
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
fn connections_go_on_in_the_order_of_their_pauses() {
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
    assert!(first.iter().all(|&who| grants(&queue)[who] == 1));
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
    queue.backlog.give_back(queue.members[1]);
    queue.flood(SMALL);
    assert_eq!(queue.length, MARK);
}

#[test]
fn when_a_connection_ends_its_grant_is_free_and_the_next_one_looks() {
    let mut queue = Queue::with(4);
    queue.flood(SMALL);
    let order = waiting(&queue);
    queue.backlog.leave(queue.members[order[0]]);
    assert_eq!(queue.backlog.take_woken(), [order[1]]);
    queue.length = 0;
    queue.poll();
    for &who in &order[1..] {
        queue.backlog.leave(queue.members[who]);
    }
    assert_eq!(queue.backlog.granted, 0);
    assert!(queue.backlog.waiting.is_empty() && queue.backlog.connections.is_empty());
}

#[test]
fn a_connection_that_ends_before_it_knows_that_it_was_woken_gives_back_its_grant() {
    let (mut backlog, [first, second]) = filled();
    for pace in [Pace::Look, Pace::Look] {
        assert_eq!(backlog.poll(first, ms(0)), pace);
    }
    backlog.looked(first, MARK, ms(0));
    assert_eq!(backlog.poll(second, ms(0)), Pace::Wait(HELD_UP));
    assert_eq!(backlog.looked(first, 0, ms(1)), Pace::Go);
    assert_eq!(grant(&backlog, first), 32);
    assert_eq!(backlog.take_woken(), [2]);
    backlog.leave(second);
    assert_eq!(backlog.take_woken(), []);
    assert_eq!(backlog.granted, 32);
}

#[test]
fn messages_sent_during_a_look_count_as_still_in_the_mailbox() {
    let (mut backlog, [first, _]) = filled();
    assert_eq!(backlog.poll(first, ms(0)), Pace::Look);
    // The look found 10 messages. 5 more were sent after it.
    (0..5).for_each(|_| _ = backlog.sent(first, SMALL));
    backlog.looked(first, 10, ms(0));
    assert_eq!(backlog.messages.len(), 15);
}

#[test]
fn of_two_connections_that_look_at_once_only_one_looks_again() {
    let (mut backlog, members) = filled();
    for member in members {
        assert_eq!(backlog.poll(member, ms(0)), Pace::Look);
    }
    let paces = members.map(|member| backlog.looked(member, MARK, ms(0)));
    assert_eq!(paces, [Pace::Wait(ms(1)), Pace::Wait(HELD_UP)]);
}

#[test]
fn pauses_double_up_to_a_limit() {
    let mut queue = Queue::with(1);
    queue.flood(SMALL);
    for pause in [2, 4, 8, 16, 16] {
        assert_eq!(queue.look(0), Pace::Wait(ms(pause)));
    }
    queue.now = ms(250);
    assert_eq!(queue.look(0), Pace::Go);
    queue.flood(SMALL);
    queue.now = ms(2_000);
    let pauses: Vec<Pace> = (0..10).map(|_| queue.look(0)).collect();
    assert_eq!(pauses.last(), Some(&Pace::Wait(ms(128))));
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
    let [first, second] = [(1, 1_000), (2, 4)].map(|(key, mark)| backlog.join(key, mark));
    while backlog.sent(first, SMALL) {}
    backlog.poll(first, ms(0));
    backlog.looked(first, 1_000, ms(0));
    backlog.poll(second, ms(0));
    backlog.looked(first, 0, ms(1));
    assert_eq!(backlog.poll(second, ms(1)), Pace::Go);
    assert_eq!([first, second].map(|m| grant(&backlog, m)), [500, 1]);
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
        let member = backlog.join(1, mark);
        assert!(!backlog.sent(member, SMALL));
        for _ in 0..10 {
            assert_eq!(backlog.poll(member, ms(0)), Pace::Look);
            backlog.looked(member, 1, ms(0));
            assert_eq!(backlog.looked(member, 0, ms(0)), Pace::Go);
            assert!(!backlog.sent(member, SMALL));
        }
    }
}

#[test]
fn a_connection_that_waits_no_longer_gives_up_its_place() {
    let (mut queue, order) = held_up::all_waiting(3);
    queue.backlog.withdraw(queue.members[order[1]]);
    assert_eq!(queue.backlog.take_woken(), []);
    queue.backlog.withdraw(queue.members[order[0]]);
    assert_eq!(queue.backlog.take_woken(), [order[2]]);
    assert_eq!(waiting(&queue), [order[2]]);
}

#[test]
fn who_has_to_wait_gives_back_its_grant() {
    let mut queue = Queue::with(3);
    queue.flood(SMALL);
    queue.length = 0;
    queue.poll();
    let [first, others @ ..] = [0, 1, 2];
    assert!(grants(&queue)[first] > 1);
    // Others fill the mailbox with large messages, and wait.
    for who in others {
        while queue.free[who] {
            queue.send(who, MAX_BYTES / 2);
        }
    }
    assert!(!waiting(&queue).contains(&first));
    queue.send(first, SMALL);
    assert!(waiting(&queue).contains(&first));
    assert_eq!(grants(&queue)[first], 0);
}

#[test]
fn with_a_trial_the_next_one_looks() {
    let mut queue = Queue::with(2);
    queue.flood(SMALL);
    let [first, next] = [0, 1].map(|at| waiting(&queue)[at]);
    queue.now = TRIAL_AFTER;
    assert_eq!(
        queue.backlog.poll(queue.members[first], queue.now),
        Pace::Look
    );
    let pace = queue
        .backlog
        .looked(queue.members[first], queue.length, queue.now);
    assert_eq!(pace, Pace::Go);
    assert_eq!(queue.backlog.take_woken(), [next]);
}
