//! Who waits for whom. A wait that can never end is found when it begins.
//!
//! Each wait is a node. It can end if *one* of its alternatives can come free, and an alternative
//! comes free if *everyone* who holds it, or stands before us in its line, can move. An owner can
//! move unless it waits for something that cannot end, or its thread is blocked by such a wait.
//! What is left over when nothing more can move is a deadlock. The last wait to join it finds it:
//! under the graph's mutex no other wait begins, and an owner that waits releases nothing itself.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;

use super::owner::Owner;
use super::process::Birth;
#[cfg(not(feature = "model"))]
use super::process::PerProcess;
use super::{Description, Left};
use crate::sync::{Mutant, Mutex, planted};

/// The ways in which a wait can end, each with everyone who must move first.
pub type Blockers = Vec<Vec<Owner>>;

/// Something that can be waited for.
pub trait Resource: Send + Sync {
    /// What `ticket` still waits for; `None` once it has an outcome. Owners who handed their guard
    /// over are left out: anybody may release it.
    fn blockers(&self, ticket: u64) -> Option<Blockers>;

    /// What `ticket` wants and who has it, in words.
    fn describe(&self, ticket: u64) -> Description;

    /// Releases what the code of a thread that has ended still holds, and refuses what it waits for.
    /// Called under the graph's mutex, as [`super::Queue::abandon`].
    fn thread_ended(&self, thread: u64) -> Left {
        let _ = thread;
        Left::default()
    }
}

/// A cycle of waits: who waits for what, held by whom.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this wait would never end: {}", sentence(.steps))]
pub struct Deadlock {
    /// The waits that keep each other from ending; the refused one first.
    pub steps: Vec<Step>,
}

/// One wait of a deadlock.
#[derive(Debug, Clone)]
pub struct Step {
    /// Who waits.
    pub waiter: String,
    /// For what.
    pub wants: String,
    /// Who would have to move first, but cannot.
    pub holders: Vec<String>,
}

fn sentence(steps: &[Step]) -> String {
    let told: Vec<_> = steps
        .iter()
        .map(|Step { waiter, wants, holders }| match holders.as_slice() {
            [holder] if holder == waiter => {
                format!("{waiter} waits for {wants}, which it holds itself")
            }
            holders => format!("{waiter} waits for {wants}, held by {}", holders.join(" and ")),
        })
        .collect();
    told.join("; ")
}

struct Wait {
    owner: Owner,
    blocks_thread: bool,
    resource: Arc<dyn Resource>,
    ticket: u64,
    /// Found to be a deadlock: on its way out, so that it stops nobody any more.
    refused: bool,
}

impl Wait {
    /// A task that waits for the plain code below its own event loop: that code runs only when the
    /// loop has stopped.
    fn waits_for_frames_below(&self, owner: &Owner) -> bool {
        !self.blocks_thread && self.owner != *owner && self.owner.runs_above(owner)
    }
}

/// Every wait under way, and where to find those that stop an owner.
#[derive(Default)]
struct Waits {
    all: Slab<Wait>,
    by_owner: HashMap<u64, Vec<usize>>,
    /// Waits that block their thread, by thread.
    by_thread: HashMap<u64, Vec<usize>>,
}

impl Waits {
    fn add(&mut self, wait: Wait) -> usize {
        let (owner, thread) = (wait.owner.number(), wait.owner.thread_number());
        let blocks_thread = wait.blocks_thread;
        let key = self.all.insert(wait);
        self.by_owner.entry(owner).or_default().push(key);
        if blocks_thread {
            self.by_thread.entry(thread).or_default().push(key);
        }
        key
    }

    fn remove(&mut self, key: usize) -> Option<Wait> {
        let wait = self.all.try_remove(key)?;
        forget(&mut self.by_owner, wait.owner.number(), key);
        if wait.blocks_thread {
            forget(&mut self.by_thread, wait.owner.thread_number(), key);
        }
        Some(wait)
    }

    /// The waits while which `owner` cannot run: its own, and those that block its thread.
    fn stopping(&self, owner: &Owner) -> Vec<usize> {
        let own = self.by_owner.get(&owner.number()).into_iter().flatten();
        let of_thread = self.by_thread.get(&owner.thread_number()).into_iter().flatten();
        own.chain(of_thread).copied().filter(|&key| !self.all[key].refused).collect()
    }

    /// Refuses a wait that can never end, before anybody else looks at the graph.
    fn refuse_if_stuck(&mut self, key: usize) -> Result<(), Deadlock> {
        let Some(deadlock) = find_deadlock(self, key) else { return Ok(()) };
        self.all[key].refused = !planted(Mutant::RefusedWaitStillStops);
        Err(deadlock)
    }
}

fn forget(index: &mut HashMap<u64, Vec<usize>>, of: u64, key: usize) {
    if let Some(keys) = index.get_mut(&of) {
        keys.retain(|&known| known != key);
        if keys.is_empty() {
            index.remove(&of);
        }
    }
}

/// All waits of one process.
struct Graph(Mutex<Waits>);

impl Default for Graph {
    fn default() -> Self {
        Self(Mutex::new(Waits::default()))
    }
}

#[cfg(not(feature = "model"))]
fn graph() -> &'static Graph {
    static GRAPH: PerProcess<Graph> = PerProcess::new();
    GRAPH.get_or_init(Graph::default)
}

#[cfg(feature = "model")]
fn graph() -> &'static Graph {
    loom::lazy_static! {
        static ref GRAPH: Graph = Graph::default();
    }
    &GRAPH
}

/// A wait that the graph knows about, for as long as this lives.
#[derive(Debug)]
pub struct Registration {
    key: usize,
    birth: Birth,
}

impl Registration {
    /// Looks again whether the wait can end.
    pub(super) fn check(&self) -> Result<(), Deadlock> {
        // A forked child's graph has other waits under the same keys.
        if self.birth.is_here() { graph().0.lock().refuse_if_stuck(self.key) } else { Ok(()) }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.birth.is_here() {
            let removed = graph().0.lock().remove(self.key);
            drop(removed);
        }
    }
}

/// Does `change` while nobody looks at the graph. Who gives up may turn the order of those behind
/// around: a look that saw one of them before that, and another after it, would find a cycle that
/// never was.
pub(super) fn unwatched<R>(change: impl FnOnce() -> R) -> R {
    let _waits = (!planted(Mutant::AbandonedUnderWatch)).then(|| graph().0.lock());
    change()
}

/// Adds a wait, unless it could never end.
pub(super) fn register(
    resource: Arc<dyn Resource>,
    ticket: u64,
    owner: Owner,
    blocks_thread: bool,
) -> Result<Registration, Deadlock> {
    let mut waits = graph().0.lock();
    let key = waits.add(Wait { owner, blocks_thread, resource, ticket, refused: false });
    let planted = planted(Mutant::NoDeadlockCheck);
    let checked = if planted { Ok(()) } else { waits.refuse_if_stuck(key) };
    drop(waits);
    let registration = Registration { key, birth: Birth::default() };
    checked.map(|()| registration)
}

/// A wait that the newest one depends on, directly or not.
struct Node<'a> {
    wait: &'a Wait,
    alternatives: Vec<Vec<Blocker>>,
    can_end: bool,
}

/// An owner that must move first, and the nodes while which it cannot.
struct Blocker {
    owner: Owner,
    stopped_by: Vec<usize>,
}

fn find_deadlock(waits: &Waits, newest: usize) -> Option<Deadlock> {
    let mut nodes = reach(waits, newest);
    // What is found last is deepest, so that one pass settles a plain chain.
    loop {
        let mut changed = false;
        for at in (0..nodes.len()).rev() {
            if !nodes[at].can_end && can_end(&nodes, &nodes[at]) {
                nodes[at].can_end = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if nodes.first()?.can_end { None } else { Some(report(&nodes)) }
}

/// The wait `newest` and all that it depends on, breadth first; none if it has its outcome already.
fn reach(waits: &Waits, newest: usize) -> Vec<Node<'_>> {
    let mut nodes: Vec<Node<'_>> = Vec::new();
    let mut found: HashMap<usize, Option<usize>> = HashMap::new();
    let mut places = 0..;
    let mut open: VecDeque<(usize, Blockers)> = VecDeque::new();
    // Gives a wait its place among the nodes. One with an outcome stops nobody: it is on its way out.
    let mut visit = |key: usize, open: &mut VecDeque<(usize, Blockers)>| {
        *found.entry(key).or_insert_with(|| {
            let wait = &waits.all[key];
            let granted = planted(Mutant::GrantedWaitCountsAsStuck).then(Blockers::new);
            let blockers = wait.resource.blockers(wait.ticket).or(granted)?;
            open.push_back((key, blockers));
            places.next()
        })
    };
    visit(newest, &mut open);
    while let Some((key, blockers)) = open.pop_front() {
        let mut blocker = |owner: Owner| {
            let stopping = waits.stopping(&owner).into_iter();
            let stopped_by = stopping.filter_map(|key| visit(key, &mut open)).collect();
            Blocker { owner, stopped_by }
        };
        let alternatives = blockers
            .into_iter()
            .map(|alternative| alternative.into_iter().map(&mut blocker).collect())
            .collect();
        nodes.push(Node { wait: &waits.all[key], alternatives, can_end: false });
    }
    nodes
}

fn can_end(nodes: &[Node<'_>], node: &Node<'_>) -> bool {
    let mut alternatives = node.alternatives.iter();
    let comes_free = |alternative: &Vec<Blocker>| {
        alternative.iter().all(|blocker| can_move(nodes, node, blocker))
    };
    if planted(Mutant::OneStuckAlternativeIsDeadlock) {
        alternatives.all(comes_free)
    } else {
        alternatives.any(comes_free)
    }
}

fn can_move(nodes: &[Node<'_>], waiting: &Node<'_>, blocker: &Blocker) -> bool {
    !waiting.wait.waits_for_frames_below(&blocker.owner)
        && blocker.stopped_by.iter().all(|&stopper| nodes[stopper].can_end)
}

fn report(nodes: &[Node<'_>]) -> Deadlock {
    let stuck = nodes.iter().filter(|node| !node.can_end);
    let steps = stuck.map(|node| {
        let mut holders = Vec::new();
        for blocker in node.alternatives.iter().flatten() {
            let holder = name_of_holder(nodes, node, blocker);
            if !holders.contains(&holder) {
                holders.push(holder);
            }
        }
        let wants = node.wait.resource.describe(node.wait.ticket).wants;
        Step { waiter: node.wait.owner.to_string(), wants, holders }
    });
    Deadlock { steps: steps.collect() }
}

fn name_of_holder(nodes: &[Node<'_>], waiting: &Node<'_>, blocker: &Blocker) -> String {
    let Blocker { owner, stopped_by } = blocker;
    let waits_itself = stopped_by.iter().any(|&stopper| nodes[stopper].wait.owner == *owner);
    if waiting.wait.waits_for_frames_below(owner) {
        format!("{owner}, whose code runs only after its event loop")
    } else if let (false, [stopper, ..]) = (waits_itself, stopped_by.as_slice()) {
        format!("{owner}, which cannot run while {} blocks its thread", nodes[*stopper].wait.owner)
    } else {
        owner.to_string()
    }
}
