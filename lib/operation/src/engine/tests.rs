use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use event::{Discard, Memory};
use proptest::prelude::*;

use super::*;
use crate::plan::tests::{group, leaf, plan};
use crate::state::PlanState;

/// Executes in memory, and fails as it is told.
#[derive(Default)]
struct Fake {
    log: Mutex<Vec<String>>,
    running: Mutex<HashSet<String>>,
    most: Mutex<usize>,
    /// How often a phase fails yet, and how.
    failures: Mutex<HashMap<String, (u32, PhaseError)>>,
    /// Phases that are done and not undone.
    done: Mutex<BTreeSet<String>>,
}

impl Fake {
    fn fails(self, id: &str, times: u32, error: PhaseError) -> Self {
        self.failures
            .lock()
            .unwrap()
            .insert(id.into(), (times, error));
        self
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Executor for Fake {
    async fn execute(&self, phase: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
        for required in &phase.requires {
            let below = format!("{required}/");
            let running = self.running.lock().unwrap();
            assert!(
                !running
                    .iter()
                    .any(|id| id == required || id.starts_with(&below))
            );
        }
        {
            let mut running = self.running.lock().unwrap();
            running.insert(phase.id.clone());
            let mut most = self.most.lock().unwrap();
            *most = (*most).max(running.len());
        }
        tokio::task::yield_now().await;
        self.running.lock().unwrap().remove(&phase.id);
        if let Some((times, error)) = self.failures.lock().unwrap().get_mut(&phase.id)
            && *times > 0
        {
            *times -= 1;
            return Err(error.clone());
        }
        self.log.lock().unwrap().push(phase.id.clone());
        self.done.lock().unwrap().insert(phase.id.clone());
        Ok(())
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.log.lock().unwrap().push(format!("again {}", phase.id));
        self.execute(phase, sink).await
    }

    async fn undo(&self, phase: &Phase, _: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.log.lock().unwrap().push(format!("undo {}", phase.id));
        self.done.lock().unwrap().remove(&phase.id);
        Ok(())
    }
}

const ENGINE: Engine = Engine {
    attempts: 3,
    first_pause: Duration::ZERO,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

fn run(plan: &Plan, journal: &Path, fake: &Fake) -> Result<(), RunError> {
    let mut journal = Journal::open(journal)?;
    block_on(ENGINE.run(plan, &mut journal, fake, Arc::new(Discard)))
}

fn rollback(plan: &Plan, journal: &Path, fake: &Fake) -> Result<(), RunError> {
    let mut journal = Journal::open(journal)?;
    block_on(ENGINE.rollback(plan, &mut journal, fake, Arc::new(Discard)))
}

fn state(plan: &Plan, journal: &Path) -> PlanState {
    replay(plan, &Journal::read(journal).unwrap())
}

fn sample() -> Plan {
    plan(vec![
        leaf("/a", &[]),
        group(
            "/b",
            Some(2),
            vec![
                leaf("/b/x", &["/b/z"]),
                leaf("/b/y", &[]),
                leaf("/b/z", &[]),
            ],
        ),
        leaf("/c", &["/b"]),
    ])
}

#[test]
fn leaves_run_in_order_and_at_once_within_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default();
    let sink = Arc::new(Memory::default());
    let mut journal = Journal::open(&path).unwrap();
    block_on(ENGINE.run(&sample(), &mut journal, &fake, sink.clone())).unwrap();
    drop(journal);
    check_order(&sample(), &fake.log());
    assert_eq!(
        (fake.log()[0].as_str(), fake.log()[4].as_str()),
        ("/a", "/c")
    );
    assert_eq!(*fake.most.lock().unwrap(), 2);
    assert!(state(&sample(), &path).is_completed());
    let first: Vec<_> = sink.events().into_iter().take(2).collect();
    assert!(
        matches!(&first[0], Event::Phase { id, state, .. } if id == "/a" && state == "in_progress")
    );
    assert!(
        matches!(&first[1], Event::Phase { id, state, .. } if id == "/a" && state == "completed")
    );
    // Nothing is left to do.
    run(&sample(), &path, &fake).unwrap();
    assert_eq!(fake.log().len(), 5);
}

#[test]
fn the_first_failure_stops_and_a_second_run_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default().fails("/b/z", 1, PhaseError::lasting("no space"));
    let error = run(&sample(), &path, &fake).unwrap_err();
    assert!(
        matches!(&error, RunError::Phase { phase, source } if phase == "/b/z" && source.message == "no space")
    );
    assert_eq!(fake.log(), ["/a", "/b/y"]);
    let found = state(&sample(), &path);
    assert_eq!(found.overall(), State::Failed);
    assert_eq!(found.phase("/b/z").error.as_deref(), Some("no space"));
    run(&sample(), &path, &fake).unwrap();
    assert_eq!(fake.log(), ["/a", "/b/y", "/b/z", "/b/x", "/c"]);
}

#[test]
fn passing_failures_are_tried_again_but_not_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default().fails("/a", 2, PhaseError::transient("busy"));
    run(&sample(), &path, &fake).unwrap();
    let fake = Fake::default().fails("/a", 9, PhaseError::transient("busy"));
    run(&sample(), &directory.path().join("other"), &fake).unwrap_err();
    assert_eq!(fake.failures.lock().unwrap()["/a"].0, 9 - ENGINE.attempts);
}

#[test]
fn a_rollback_takes_back_what_was_attempted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default().fails("/b/x", 1, PhaseError::lasting("no"));
    run(&sample(), &path, &fake).unwrap_err();
    rollback(&sample(), &path, &fake).unwrap();
    assert_eq!(
        fake.log()[3..],
        ["undo /b/x", "undo /b/z", "undo /b/y", "undo /a"]
    );
    assert_eq!(state(&sample(), &path).overall(), State::RolledBack);
    rollback(&sample(), &path, &fake).unwrap();
    assert_eq!(fake.log().len(), 7);
    run(&sample(), &path, &fake).unwrap();
    assert!(state(&sample(), &path).is_completed());
}

fn run_phase(journal: &Path, fake: &Fake, phase: &str, force: bool) -> Result<(), RunError> {
    let mut journal = Journal::open(journal)?;
    let sink = Arc::new(Discard);
    block_on(ENGINE.run_phase(&sample(), &mut journal, fake, sink, phase, force))
}

fn rollback_phase(journal: &Path, fake: &Fake, phase: &str, force: bool) -> Result<(), RunError> {
    let mut journal = Journal::open(journal)?;
    let sink = Arc::new(Discard);
    block_on(ENGINE.rollback_phase(&sample(), &mut journal, fake, sink, phase, force))
}

#[test]
fn one_phase_runs_when_what_it_requires_is_complete_or_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default();
    let error = run_phase(&path, &fake, "/b", false).unwrap_err();
    assert!(
        matches!(&error, RunError::Requires { phase, missing } if phase == "/b/x" && missing == &["/b/z", "/a"]),
        "{error}"
    );
    assert!(fake.log().is_empty());
    let error = run_phase(&path, &fake, "/d", false).unwrap_err();
    assert!(error.to_string().contains("no phase /d"), "{error}");
    run_phase(&path, &fake, "/a", false).unwrap();
    run_phase(&path, &fake, "/a", false).unwrap();
    run_phase(&path, &fake, "/b/y", false).unwrap();
    assert_eq!(fake.log(), ["/a", "/b/y"]);
    run_phase(&path, &fake, "/b", false).unwrap();
    assert_eq!(fake.log()[2..], ["/b/z", "/b/x"]);
    run_phase(&path, &fake, "/b/y", true).unwrap();
    assert_eq!(fake.log()[4..], ["again /b/y", "/b/y"]);
    run(&sample(), &path, &fake).unwrap();
    assert_eq!(fake.log()[6..], ["/c"]);
}

#[test]
fn one_phase_is_rolled_back_when_nothing_came_after_it_or_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let fake = Fake::default();
    // What never began has nothing to take back.
    rollback_phase(&path, &fake, "/b", false).unwrap();
    run(&sample(), &path, &fake).unwrap();
    for (phase, after) in [
        ("/a", &["/b/x", "/b/y", "/b/z"][..]),
        ("/b/z", &["/b/x", "/c"]),
        ("/b", &["/c"]),
    ] {
        let error = rollback_phase(&path, &fake, phase, false).unwrap_err();
        assert!(
            matches!(&error, RunError::Follows { after: found, .. } if found == after),
            "{error}"
        );
    }
    rollback_phase(&path, &fake, "/c", false).unwrap();
    rollback_phase(&path, &fake, "/b", false).unwrap();
    assert_eq!(
        fake.log()[5..],
        ["undo /c", "undo /b/x", "undo /b/z", "undo /b/y"]
    );
    assert_eq!(state(&sample(), &path).phase("/b").state, State::RolledBack);
    run(&sample(), &path, &fake).unwrap();
    rollback_phase(&path, &fake, "/b/z", true).unwrap();
    assert_eq!(
        state(&sample(), &path).phase("/b/x").state,
        State::Completed
    );
}

#[test]
fn a_thousand_phases_cost_little() {
    let leaves = (0..1000).map(|n| leaf(&format!("/n/{n}"), &[])).collect();
    let plan = plan(vec![group("/n", Some(50), leaves), leaf("/end", &["/n"])]);
    let graph = std::time::Instant::now();
    plan.validate().unwrap();
    assert!(graph.elapsed() < Duration::from_secs(1));
}

/// Plans of up to three groups, with requirements on phases before them.
fn plans() -> impl Strategy<Value = Plan> {
    let limit = prop_oneof![Just(None), (1usize..4).prop_map(Some)];
    let group_of = (
        limit,
        prop::collection::vec(
            prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            1..5,
        ),
    );
    prop::collection::vec(group_of, 1..4).prop_map(|groups| {
        let mut before: Vec<String> = Vec::new();
        let mut phases = Vec::new();
        for (number, (limit, leaves)) in groups.into_iter().enumerate() {
            let id = format!("/g{number}");
            let mut children = Vec::new();
            for (child, requires) in leaves.into_iter().enumerate() {
                let own = format!("{id}/p{child}");
                let requires: BTreeSet<&str> = match before.is_empty() {
                    true => BTreeSet::new(),
                    false => requires
                        .iter()
                        .map(|index| index.get(&before).as_str())
                        .collect(),
                };
                children.push(leaf(&own, &requires.into_iter().collect::<Vec<_>>()));
                before.push(own);
            }
            phases.push(group(&id, limit, children));
            before.push(id);
        }
        plan(phases)
    })
}

/// Lets a number of leaves end, then is killed in the middle of the next.
struct Killed<'a> {
    fake: &'a Fake,
    left: Mutex<usize>,
}

#[async_trait::async_trait]
impl Executor for Killed<'_> {
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        let dies = {
            let mut left = self.left.lock().unwrap();
            let dies = *left == 0;
            *left = left.saturating_sub(1);
            dies
        };
        match dies {
            true => std::future::pending().await,
            false => self.fake.execute(phase, sink).await,
        }
    }

    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.fake.execute_again(phase, sink).await
    }

    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError> {
        self.fake.undo(phase, sink).await
    }
}

fn ids(plan: &Plan) -> BTreeSet<String> {
    plan.leaves().iter().map(|phase| phase.id.clone()).collect()
}

fn before(log: &[String], one: &str, other: &str) -> bool {
    let at = |id: &str| log.iter().position(|logged| logged == id);
    at(one) < at(other)
}

fn check_order(plan: &Plan, log: &[String]) {
    for phase in plan.leaves() {
        for required in &phase.requires {
            let below = format!("{required}/");
            for earlier in ids(plan)
                .iter()
                .filter(|id| *id == required || id.starts_with(&below))
            {
                assert!(
                    before(log, earlier, &phase.id),
                    "{earlier} before {}: {log:?}",
                    phase.id
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requirements_are_always_kept_and_a_rollback_goes_backwards(plan in plans()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let fake = Fake::default();
        run(&plan, &path, &fake).unwrap();
        let log = fake.log();
        prop_assert_eq!(log.iter().cloned().collect::<BTreeSet<_>>(), ids(&plan));
        prop_assert_eq!(log.len(), ids(&plan).len());
        check_order(&plan, &log);
        prop_assert!(state(&plan, &path).is_completed());

        fake.log.lock().unwrap().clear();
        rollback(&plan, &path, &fake).unwrap();
        let mut undone: Vec<String> =
            fake.log().iter().map(|line| line.trim_start_matches("undo ").to_owned()).collect();
        undone.reverse();
        check_order(&plan, &undone);
        prop_assert!(fake.done.lock().unwrap().is_empty());
        prop_assert_eq!(state(&plan, &path).overall(), State::RolledBack);
    }

    #[test]
    fn a_kill_in_any_phase_and_a_cut_of_any_record_end_the_same(plan in plans(), at in any::<prop::sample::Index>(), torn in 0usize..60) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let fake = Fake::default();
        let killed = Killed { fake: &fake, left: Mutex::new(at.index(ids(&plan).len())) };
        {
            let mut journal = Journal::open(&path).unwrap();
            block_on(async {
                let run = ENGINE.run(&plan, &mut journal, &killed, Arc::new(Discard));
                // The run never ends: it is dropped once nothing moves any more.
                drop(tokio::time::timeout(Duration::from_millis(5), run).await);
            });
            // What was done live is what the records say.
            prop_assert_eq!(state(&plan, &path), replay(&plan, journal.records()));
        }
        let bytes = std::fs::read(&path).unwrap();
        host::atomic::write(&path, &bytes[..bytes.len().saturating_sub(torn)], 0o600).unwrap();
        run(&plan, &path, &fake).unwrap();
        prop_assert_eq!(fake.done.lock().unwrap().clone(), ids(&plan));
        prop_assert!(state(&plan, &path).is_completed());
        // Executed again at most where the record was lost or cut short.
        prop_assert!(fake.log().len() <= ids(&plan).len() + 1);
    }
}
