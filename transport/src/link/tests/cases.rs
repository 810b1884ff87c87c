//! What an engine may rely on, however the link is made.

use super::*;

/// Two linked engines.
struct Pair {
    hub: Hub,
    attention: Engine,
    expert: Engine,
    to_expert: LinkSender,
    to_attention: LinkSender,
    connection: Connection,
    serving: Serving,
}

impl Pair {
    fn linked(kind: Kind) -> Self {
        let hub = Hub::new();
        let mut attention = kind.engine(ATTENTION, "m", &hub);
        let mut expert = kind.engine(EXPERT, "m", &hub);
        let serving = Serving::start(kind, &expert, &hub);
        let connection = attention.links.connect(EXPERT, &serving.address).unwrap();
        let to_expert = attention.up(EXPERT);
        let to_attention = expert.up(ATTENTION);
        Self { hub, attention, expert, to_expert, to_attention, connection, serving }
    }
}

/// Each case becomes one test per kind of link.
macro_rules! for_every_kind_of_link {
    ($($case:ident,)*) => {
        for_every_kind_of_link!(memory, Memory, $($case)*);
        for_every_kind_of_link!(inproc, Inproc, $($case)*);
        for_every_kind_of_link!(tcp, Tcp, $($case)*);
        for_every_kind_of_link!(nccl, Nccl, $($case)*);
    };
    ($name:ident, $kind:ident, $($case:ident)*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $case() {
                    super::$case(super::Kind::$kind);
                }
            )*
        }
    };
}

for_every_kind_of_link! {
    frames_arrive_in_order_both_ways,
    a_window_is_filled_and_given_back,
    frames_without_rows_are_bounded_too,
    a_frame_above_the_window_goes_alone,
    a_frame_above_the_limit_is_refused_at_the_sender,
    what_was_sent_before_a_close_is_delivered,
    the_listening_end_may_close,
    a_dropped_connection_stays_down,
    a_peer_that_moves_is_down_before_it_is_up,
    a_peer_that_restarts_is_found_again,
    credits_start_anew_with_each_link,
    another_model_is_refused_until_it_is_the_same,
    another_node_at_the_address_is_refused,
    a_node_that_dials_again_replaces_its_link,
    links_above_the_bound_wait_for_a_seat,
    an_engine_that_is_gone_closes_its_links,
}

fn frames_arrive_in_order_both_ways(kind: Kind) {
    const FRAMES: u64 = 400;
    let pair = Pair::linked(kind);
    let rows = |step: u64| (step % 9) as usize;
    let echo = std::thread::spawn({
        let (mut expert, to_attention) = (pair.expert, pair.to_attention);
        move || {
            for step in 0..FRAMES {
                let (frame, permit) = expert.frame();
                assert_eq!(frame, dispatch(step, rows(step)));
                drop(permit);
                send(&expert, &to_attention, output(step, rows(step)));
            }
            (expert, to_attention)
        }
    });
    let mut attention = pair.attention;
    let mut answered = 0;
    for step in 0..FRAMES {
        send(&attention, &pair.to_expert, dispatch(step, rows(step)));
        // Outputs have to be taken for the expert to go on; a few stay behind to fill the window.
        while step - answered > 5 {
            assert_eq!(attention.frame().0, output(answered, rows(answered)));
            answered += 1;
        }
    }
    for step in answered..FRAMES {
        assert_eq!(attention.frame().0, output(step, rows(step)));
    }
    echo.join().unwrap();
}

fn a_window_is_filled_and_given_back(kind: Kind) {
    let mut pair = Pair::linked(kind);
    for step in 0..4 {
        pair.to_expert.try_send(dispatch(step, 16)).unwrap();
    }
    let refused = pair.to_expert.try_send(dispatch(4, 16));
    assert_eq!(refused, Err(Refused::NoCredit(dispatch(4, 16))));
    let mut held: Vec<_> = (0..4).map(|_| pair.expert.frame()).collect();
    assert!(
        matches!(pair.to_expert.try_send(dispatch(4, 16)), Err(Refused::NoCredit(_))),
        "rows that wait in the receiver's queue hold their credit"
    );
    held.pop();
    send(&pair.attention, &pair.to_expert, dispatch(4, 16));
    assert_eq!(pair.expert.frame().0, dispatch(4, 16));
    drop(held);
    for step in 5..9 {
        send(&pair.attention, &pair.to_expert, dispatch(step, 16));
    }
}

fn frames_without_rows_are_bounded_too(kind: Kind) {
    let pair = Pair::linked(kind);
    let frames_max = CREDIT / FRAME_COST_MIN;
    for ticket in 0..frames_max {
        let cancel = Frame::Cancel(vec![Ticket(ticket)]);
        pair.to_expert.try_send(cancel).unwrap();
    }
    let refused = pair.to_expert.try_send(dispatch(0, 0));
    assert_eq!(refused, Err(Refused::NoCredit(dispatch(0, 0))));
    pair.to_attention.try_send(Frame::Barrier { step: 1 }).unwrap();
}

fn a_frame_above_the_window_goes_alone(kind: Kind) {
    let mut pair = Pair::linked(kind);
    send(&pair.attention, &pair.to_expert, dispatch(0, 1));
    let refused = pair.to_expert.try_send(dispatch(1, 100));
    assert!(matches!(refused, Err(Refused::NoCredit(_))));
    drop(pair.expert.frame());
    send(&pair.attention, &pair.to_expert, dispatch(1, 100));
    let refused = pair.to_expert.try_send(dispatch(2, 0));
    assert!(matches!(refused, Err(Refused::NoCredit(_))));
    let (large, permit) = pair.expert.frame();
    assert_eq!(large, dispatch(1, 100));
    drop(permit);
    send(&pair.attention, &pair.to_expert, dispatch(2, 0));
}

fn a_frame_above_the_limit_is_refused_at_the_sender(kind: Kind) {
    let pair = Pair::linked(kind);
    let refused = pair.to_expert.try_send(dispatch(0, 1024)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a frame of 1048640 bytes is above the limit of 1048576 (frame_bytes_max)"
    );
    pair.to_expert.try_send(dispatch(0, 1023)).unwrap();
}

fn what_was_sent_before_a_close_is_delivered(kind: Kind) {
    let mut pair = Pair::linked(kind);
    for step in 0..4 {
        pair.to_expert.try_send(dispatch(step, 16)).unwrap();
    }
    drop(pair.to_expert);
    for step in 0..4 {
        assert_eq!(pair.expert.frame().0, dispatch(step, 16));
    }
    assert_eq!(pair.expert.down(ATTENTION), "n1 closed the link");
    assert_eq!(pair.attention.down(EXPERT), "n1 closed the link");
    let refused = pair.to_attention.try_send(output(0, 1));
    assert_eq!(refused, Err(Refused::Closed(output(0, 1))));
    drop((pair.attention.up(EXPERT), pair.expert.up(ATTENTION)));
}

fn the_listening_end_may_close(kind: Kind) {
    let mut pair = Pair::linked(kind);
    pair.to_attention.try_send(output(0, 3)).unwrap();
    drop(pair.to_attention);
    assert_eq!(pair.attention.frame().0, output(0, 3));
    assert_eq!(pair.attention.down(EXPERT), "n2 closed the link");
    pair.expert.down(ATTENTION);
    drop((pair.attention.up(EXPERT), pair.expert.up(ATTENTION)));
}

fn a_dropped_connection_stays_down(kind: Kind) {
    let mut pair = Pair::linked(kind);
    drop(pair.connection);
    pair.attention.down(EXPERT);
    pair.expert.down(ATTENTION);
    let again = pair.attention.links.connect(EXPERT, &pair.serving.address);
    // Nothing of the old link comes after this.
    drop((pair.attention.up(EXPERT), pair.expert.up(ATTENTION)));
    again.unwrap();
}

fn a_peer_that_moves_is_down_before_it_is_up(kind: Kind) {
    let mut pair = Pair::linked(kind);
    for _ in 0..20 {
        drop(pair.connection);
        pair.connection = pair.attention.links.connect(EXPERT, &pair.serving.address).unwrap();
        pair.attention.down(EXPERT);
        pair.expert.down(ATTENTION);
        drop((pair.attention.up(EXPERT), pair.expert.up(ATTENTION)));
        // The dropped senders closed the link, and it came back.
        pair.attention.down(EXPERT);
        pair.expert.down(ATTENTION);
        pair.to_expert = pair.attention.up(EXPERT);
        pair.to_attention = pair.expert.up(ATTENTION);
    }
}

fn a_peer_that_restarts_is_found_again(kind: Kind) {
    let mut pair = Pair::linked(kind);
    let address = pair.serving.address.clone();
    for _ in 0..3 {
        drop(pair.serving);
        drop((pair.expert, pair.to_attention));
        pair.attention.down(EXPERT);
        let refused = pair.to_expert.try_send(dispatch(0, 1));
        assert!(matches!(refused, Err(Refused::Closed(_))));
        pair.expert = kind.engine(EXPERT, "m", &pair.hub);
        pair.serving = Serving::start_at(&address, &pair.expert, &pair.hub);
        pair.to_expert = pair.attention.up(EXPERT);
        pair.to_attention = pair.expert.up(ATTENTION);
        send(&pair.attention, &pair.to_expert, dispatch(1, 1));
        assert_eq!(pair.expert.frame().0, dispatch(1, 1));
    }
}

fn credits_start_anew_with_each_link(kind: Kind) {
    let mut pair = Pair::linked(kind);
    pair.to_expert.try_send(dispatch(0, 64)).unwrap();
    let (_, held) = pair.expert.frame();
    drop(pair.to_expert);
    pair.attention.down(EXPERT);
    pair.expert.down(ATTENTION);
    let (to_expert, _to_attention) = (pair.attention.up(EXPERT), pair.expert.up(ATTENTION));
    to_expert.try_send(dispatch(1, 64)).unwrap();
    drop(held);
    assert!(
        matches!(to_expert.try_send(dispatch(2, 1)), Err(Refused::NoCredit(_))),
        "a permit of the old link is no credit of the new one"
    );
}

fn another_model_is_refused_until_it_is_the_same(kind: Kind) {
    let hub = Hub::new();
    let mut attention = kind.engine(ATTENTION, "ours", &hub);
    let expert = kind.engine(EXPERT, "theirs", &hub);
    let serving = Serving::start(kind, &expert, &hub);
    let address = serving.address.clone();
    let _connection = attention.links.connect(EXPERT, &address).unwrap();
    refused_twice(&attention);
    assert!(attention.mailbox.is_empty() && expert.mailbox.is_empty());
    drop((serving, expert));
    let mut expert = kind.engine(EXPERT, "ours", &hub);
    let _serving = Serving::start_at(&address, &expert, &hub);
    drop((attention.up(EXPERT), expert.up(ATTENTION)));
}

fn another_node_at_the_address_is_refused(kind: Kind) {
    let hub = Hub::new();
    let attention = kind.engine(ATTENTION, "m", &hub);
    let expert = kind.engine(NodeId(9), "m", &hub);
    let serving = Serving::start(kind, &expert, &hub);
    let _connection = attention.links.connect(EXPERT, &serving.address).unwrap();
    refused_twice(&attention);
    assert!(attention.mailbox.is_empty());
}

/// Waits for the second failed attempt: a refusal does not end the dialling.
fn refused_twice(engine: &Engine) {
    let deadline = Instant::now() + PATIENCE;
    while engine.links.end.metrics.dials_failed.get() < 2 {
        assert!(Instant::now() < deadline, "no attempts");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_node_that_dials_again_replaces_its_link(kind: Kind) {
    let mut pair = Pair::linked(kind);
    let mut restarted = kind.engine(ATTENTION, "m", &pair.hub);
    let connection = restarted.links.connect(EXPERT, &pair.serving.address).unwrap();
    pair.expert.down(ATTENTION);
    let to_attention = pair.expert.up(ATTENTION);
    let to_expert = restarted.up(EXPERT);
    pair.attention.down(EXPERT);
    drop(pair.connection);
    // The first one may have dialled again before its connection was dropped.
    drop((to_attention, to_expert, connection));
}

fn links_above_the_bound_wait_for_a_seat(kind: Kind) {
    let hub = Hub::new();
    let mut expert = kind.engine(EXPERT, "m", &hub);
    let serving = Serving::start(kind, &expert, &hub);
    let mut seated = Vec::new();
    for node in 10..13 {
        let mut attention = kind.engine(NodeId(node), "m", &hub);
        let connection = attention.links.connect(EXPERT, &serving.address).unwrap();
        let senders = (attention.up(EXPERT), expert.up(NodeId(node)));
        seated.push((attention, senders, connection));
    }
    let mut late = kind.engine(NodeId(13), "m", &hub);
    let _connection = late.links.connect(EXPERT, &serving.address).unwrap();
    refused_twice(&late);
    assert!(late.mailbox.is_empty() && expert.mailbox.is_empty());
    drop(seated.pop());
    expert.down(NodeId(12));
    drop((late.up(EXPERT), expert.up(NodeId(13))));
}

fn an_engine_that_is_gone_closes_its_links(kind: Kind) {
    let mut pair = Pair::linked(kind);
    drop((pair.attention.mailbox, pair.to_expert));
    pair.expert.down(ATTENTION);
    let mut expert_is_gone = Pair::linked(kind);
    drop(expert_is_gone.expert.mailbox);
    expert_is_gone.attention.down(EXPERT);
}
