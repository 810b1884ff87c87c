//! The state machine by hand: every word, every turn and every second is the test's.

use proto::frame::NcclStep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// Two devices, the first of which leads all pairs.
struct Bench {
    world: World,
    machines: [Machine<Fake>; 2],
    now: Instant,
    places: Arc<Semaphore>,
}

/// One end of a link that wants a pair.
struct End {
    id: PairId,
    words: mpsc::Receiver<NcclWord>,
    route: Arc<OnceLock<Route>>,
    lost: oneshot::Receiver<String>,
    metrics: LinkMetrics,
}

impl Bench {
    fn new() -> Self {
        let world = World::default();
        let backoff = Backoff { first: SECOND, max: 60 * SECOND };
        let bounds = Bounds { backoff, ..BOUNDS };
        let machine = || Machine::new(Fake::new(world.clone()), bounds);
        let machines = [machine(), machine()];
        Self { world, machines, now: Instant::now(), places: Arc::new(Semaphore::new(64)) }
    }

    /// A link that came up.
    fn link(&mut self) -> [End; 2] {
        [0, 1].map(|side| {
            let (id, (words, said)) = (PairId::new(), mpsc::channel(WORDS_MAX));
            let (route, (lost, told)) = (Arc::new(OnceLock::new()), oneshot::channel());
            let metrics = LinkMetrics::register(&prometheus::Registry::new(), "test").unwrap();
            let newcomer = Newcomer {
                id,
                peer: NODES[1 - side],
                leads: side == 0,
                row_bytes_max: BOUNDS.row_bytes_max,
                words,
                route: Arc::clone(&route),
                lost,
                metrics: metrics.clone(),
            };
            self.machines[side].take(Command::Open(Box::new(newcomer)), self.now);
            End { id, words: said, route, lost: told, metrics }
        })
    }

    fn turn(&mut self) {
        for machine in &mut self.machines {
            machine.turn(self.now);
        }
    }

    /// Turns both machines and carries what they say, until neither says anything.
    fn settle(&mut self, link: &mut [End; 2]) {
        for _ in 0..100 {
            self.turn();
            if !self.carry(link) {
                return;
            }
        }
        panic!("they go on talking");
    }

    fn carry(&mut self, link: &mut [End; 2]) -> bool {
        let mut carried = false;
        for side in [0, 1] {
            while let Ok(word) = link[side].words.try_recv() {
                let pair = link[1 - side].id;
                self.machines[1 - side].take(Command::Hear { pair, word }, self.now);
                carried = true;
            }
        }
        carried
    }

    fn joined(&mut self) -> [End; 2] {
        let mut link = self.link();
        self.settle(&mut link);
        assert!(link.iter().all(End::is_joined), "nothing stood in the way");
        link
    }

    fn send(&mut self, side: usize, from: &End, rows: &'static [u8]) {
        let place = || Arc::clone(&self.places).try_acquire_owned().unwrap();
        let parcel = Parcel { rows: Bytes::from_static(rows), _places: [place(), place()] };
        self.machines[side].take(Command::Send { pair: from.id, parcel }, self.now);
    }

    fn receive(&mut self, side: usize, at: &End, bytes: usize) -> oneshot::Receiver<Bytes> {
        let (done, arrived) = oneshot::channel();
        let awaited = Awaited { bytes, done };
        self.machines[side].take(Command::Receive { pair: at.id, awaited }, self.now);
        arrived
    }
}

impl End {
    fn is_joined(&self) -> bool {
        let open = self.route.get().is_some();
        assert_eq!(open, self.metrics.nccl_pairs.get() == 1);
        open
    }

    fn lost(&mut self) -> Option<String> {
        self.lost.try_recv().ok()
    }

    fn failures(&self) -> u64 {
        self.metrics.nccl_pairs_failed.get()
    }
}

#[test]
fn rows_go_both_ways_in_order_whichever_end_is_first() {
    let mut bench = Bench::new();
    let [mut first, mut second] = bench.joined();
    // One way the headers are faster than the rows, the other way slower.
    let mut early: Vec<_> = (1..4).map(|bytes| bench.receive(1, &second, bytes)).collect();
    bench.turn();
    assert!(early.iter_mut().all(|rows| rows.try_recv() == Err(TryRecvError::Empty)));
    for rows in [&b"a"[..], b"bc", b"def"] {
        bench.send(0, &first, rows);
        bench.send(1, &second, rows);
    }
    bench.turn();
    let mut late: Vec<_> = (1..4).map(|bytes| bench.receive(0, &first, bytes)).collect();
    (0..8).for_each(|_| bench.turn());
    for arrived in [&mut early, &mut late] {
        let rows: Vec<_> = arrived.iter_mut().map(|rows| rows.try_recv().unwrap()).collect();
        assert_eq!(rows, [&b"a"[..], b"bc", b"def"]);
    }
    assert_eq!(bench.places.available_permits(), 64, "places come back with the transfers");
    assert_eq!((first.lost(), second.lost()), (None, None));
    let bytes = [first.metrics, second.metrics]
        .map(|m| (m.nccl_row_bytes_sent.get(), m.nccl_row_bytes_received.get()));
    assert_eq!(bytes, [(6, 6), (6, 6)]);
}

#[test]
fn a_pair_that_cannot_be_made_is_tried_again_later_each_time() {
    let mut bench = Bench::new();
    bench.world.state().refuses = true;
    let mut link = bench.link();
    for attempt in 1..6 {
        bench.settle(&mut link);
        assert_eq!(link[0].failures(), attempt, "one attempt, then a pause");
        bench.now += Duration::from_millis(499);
        bench.settle(&mut link);
        assert_eq!(link[0].failures(), attempt, "no pause is shorter than half of the first");
        bench.now += 60 * SECOND;
    }
    bench.world.state().refuses = false;
    bench.settle(&mut link);
    assert!(link.iter().all(End::is_joined));
    assert!(link.iter_mut().all(|end| end.lost().is_none()), "no rows were with NCCL");
}

#[test]
fn what_does_not_come_together_in_time_is_given_up_at_both_ends() {
    let mut bench = Bench::new();
    bench.world.state().never_joins = true;
    let mut link = bench.link();
    bench.settle(&mut link);
    bench.now += BOUNDS.join - Duration::from_millis(1);
    bench.settle(&mut link);
    assert_eq!((link[0].failures(), bench.world.open_ends()), (0, 4));
    bench.now += Duration::from_millis(1);
    bench.settle(&mut link);
    assert_eq!(link.each_ref().map(End::failures), [1, 1]);
    assert_eq!(bench.world.open_ends(), 0, "nothing is left behind");
    bench.world.state().never_joins = false;
    bench.now += SECOND;
    bench.settle(&mut link);
    assert!(link.iter().all(End::is_joined));
}

#[test]
fn an_end_that_is_slow_to_join_gets_no_rows_before() {
    let mut bench = Bench::new();
    let mut link = bench.link();
    bench.turn();
    let names = link[0].words.try_recv().unwrap();
    bench.now += BOUNDS.join / 2;
    bench.turn();
    assert!(!link[0].is_joined());
    bench.machines[1].take(Command::Hear { pair: link[1].id, word: names }, bench.now);
    bench.turn();
    // Both have their communicators, and the first has said so, but does not know of the second.
    assert!(!link[0].is_joined());
    bench.settle(&mut link);
    assert!(link.iter().all(End::is_joined));
}

#[test]
fn words_of_an_attempt_that_is_over_mean_nothing() {
    let mut bench = Bench::new();
    bench.world.state().never_joins = true;
    let mut link = bench.link();
    bench.settle(&mut link);
    for step in [NcclStep::Joined, NcclStep::Failed("of long ago".to_owned())] {
        let word = NcclWord { attempt: 0, step };
        bench.machines[0].take(Command::Hear { pair: link[0].id, word }, bench.now);
    }
    assert_eq!(link[0].failures(), 0);
    bench.world.state().never_joins = false;
    bench.turn();
    assert!(!link[0].is_joined(), "the other end has not said that it is there");
}

#[test]
fn an_end_that_gives_up_after_it_said_joined_takes_the_other_along() {
    let mut bench = Bench::new();
    let mut link = bench.link();
    bench.turn();
    bench.carry(&mut link);
    bench.turn();
    bench.turn();
    // Both have said so; only the second hears of it.
    let word = link[0].words.try_recv().unwrap();
    assert_eq!(word.step, NcclStep::Joined);
    bench.machines[1].take(Command::Hear { pair: link[1].id, word }, bench.now);
    assert!(link[1].is_joined() && !link[0].is_joined());
    bench.send(1, &link[1], b"early");
    let unheard = link[1].words.try_recv().unwrap();
    assert_eq!(unheard.step, NcclStep::Joined);
    bench.now += BOUNDS.join;
    bench.turn();
    assert_eq!(link[0].failures(), 1);
    let mut rows = bench.receive(0, &link[0], 5);
    assert_eq!(rows.try_recv(), Err(TryRecvError::Closed), "a promise nobody can keep");
    bench.settle(&mut link);
    let reason = link[1].lost().unwrap();
    assert!(
        reason.starts_with("rows by NCCL: the peer says: communicators were not made"),
        "{reason}"
    );
    assert_eq!(bench.world.open_ends(), 0);
}

#[test]
fn a_slow_peer_loses_nothing_and_holds_nobody_else_up() {
    let mut bench = Bench::new();
    let [mut slow, mut far_slow] = bench.joined();
    let [quick, far_quick] = bench.joined();
    bench.send(0, &slow, b"patience");
    for _ in 0..3 {
        bench.now += SECOND;
        bench.send(0, &quick, b"now");
        let mut rows = bench.receive(1, &far_quick, 3);
        (0..3).for_each(|_| bench.turn());
        assert_eq!(rows.try_recv().unwrap(), &b"now"[..]);
    }
    let mut rows = bench.receive(1, &far_slow, 8);
    (0..3).for_each(|_| bench.turn());
    assert_eq!(rows.try_recv().unwrap(), &b"patience"[..]);
    assert_eq!((slow.lost(), far_slow.lost()), (None, None));
}

#[test]
fn a_transfer_that_does_not_end_takes_its_link_down() {
    let mut bench = Bench::new();
    bench.world.state().mute = true;
    let [mut first, mut second] = bench.joined();
    bench.send(0, &first, b"never");
    let mut rows = bench.receive(1, &second, 5);
    let mut behind = bench.receive(1, &second, 7);
    bench.turn();
    bench.now += BOUNDS.transfer - Duration::from_millis(1);
    bench.turn();
    assert_eq!((first.lost(), second.lost()), (None, None));
    bench.now += Duration::from_millis(1);
    bench.turn();
    let sentence = "rows by NCCL: 5 bytes of rows did not get through in 5s";
    assert_eq!(first.lost().unwrap(), sentence);
    assert_eq!(second.lost().unwrap(), sentence);
    assert_eq!(rows.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(behind.try_recv(), Err(TryRecvError::Closed));
    assert_eq!((bench.world.open_ends(), bench.places.available_permits()), (0, 64));
}

#[test]
fn a_peer_that_died_is_noticed_with_nothing_under_way() {
    let mut bench = Bench::new();
    bench.world.state().tells = true;
    let [first, mut second] = bench.joined();
    drop(first);
    bench.now += SECOND;
    bench.turn();
    bench.now += SECOND;
    bench.turn();
    assert_eq!(second.lost().unwrap(), "rows by NCCL: remote error");
    assert_eq!(bench.world.open_ends(), 0);
}

#[test]
fn a_peer_that_failed_is_left_alone_for_a_while_also_by_its_next_link() {
    let mut bench = Bench::new();
    for failures in 0..4 {
        let mut link = bench.link();
        bench.settle(&mut link);
        assert_eq!(link[0].is_joined(), failures == 0, "after {failures} failures");
        bench.now += Duration::from_millis(250 << failures) - Duration::from_millis(1);
        bench.settle(&mut link);
        assert_eq!(link[0].is_joined(), failures == 0, "pauses grow");
        bench.now += Duration::from_secs(1 << failures);
        bench.settle(&mut link);
        assert!(link.iter().all(End::is_joined));
        bench.world.state().breaks_after = Some(0);
        bench.send(0, &link[0], b"broken");
        let _rows = bench.receive(1, &link[1], 6);
        (0..3).for_each(|_| bench.turn());
        assert_eq!(link[0].lost().unwrap(), "rows by NCCL: remote error");
    }
    bench.now += 200 * SECOND;
    bench.joined();
}

#[test]
fn a_peer_with_whom_all_went_well_for_long_is_tried_again_soon() {
    let mut bench = Bench::new();
    for (failures, well) in [(0, 0), (1, 0), (2, 61)] {
        let mut link = bench.link();
        bench.now += SECOND * (1 << failures);
        bench.settle(&mut link);
        assert!(link.iter().all(End::is_joined));
        bench.now += SECOND * well;
        bench.world.state().breaks_after = Some(0);
        bench.send(0, &link[0], b"broken");
        let _rows = bench.receive(1, &link[1], 6);
        (0..3).for_each(|_| bench.turn());
        assert!(link[0].lost().is_some());
    }
    // The third pause in a row would be longer.
    let mut link = bench.link();
    bench.now += SECOND;
    bench.settle(&mut link);
    assert!(link.iter().all(End::is_joined));
}

#[test]
fn receives_under_way_are_bounded_and_all_get_their_turn() {
    const PAIRS: usize = 3 * RECEIVES_MAX;
    let mut bench = Bench::new();
    let links: Vec<_> = (0..PAIRS).map(|_| bench.joined()).collect();
    bench.world.state().mute = true;
    let mut rows: Vec<_> = links.iter().map(|link| bench.receive(1, &link[1], 3)).collect();
    links.iter().for_each(|link| bench.send(0, &link[0], b"row"));
    (0..4).for_each(|_| bench.turn());
    assert_eq!(bench.world.state().receives_max, RECEIVES_MAX);
    bench.world.state().mute = false;
    (0..12).for_each(|_| bench.turn());
    assert!(rows.iter_mut().all(|rows| rows.try_recv().is_ok()), "none is passed over");
    assert_eq!(bench.world.state().receives_max, RECEIVES_MAX);
}

#[test]
fn a_link_that_ends_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let [first, second] = bench.joined();
    bench.send(0, &first, b"for nobody");
    bench.turn();
    let metrics = [first.metrics.clone(), second.metrics.clone()];
    drop((first, second));
    bench.turn();
    assert_eq!((bench.world.open_ends(), bench.places.available_permits()), (0, 64));
    assert_eq!(metrics.map(|m| (m.nccl_pairs.get(), m.nccl_pairs_failed.get())), [(0, 0), (0, 0)]);
}
