//! Nodes of the allocator, by index. They lie outside the memory they describe, so code that overruns cannot reach them.

/// Nodes of one chunk. Growth adds a chunk and moves nothing, so it takes the same time however many nodes there are.
const CHUNK_NODES: u32 = 1024;
/// Stands for "no node".
pub(super) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot describes nothing.
    Vacant,
    Free,
    Used,
}

/// A block: a run of granules that is one span, or free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// In granules from the area's start.
    pub(super) start: u32,
    pub(super) granules: u32,
    /// Neighbours in memory.
    pub(super) before: u32,
    pub(super) after: u32,
    /// Neighbours in the free list of the block's class; of a vacant slot, `next` is the next vacant slot.
    pub(super) previous: u32,
    pub(super) next: u32,
    /// Goes up when a span of this slot is given back: tells that span's handle from later ones.
    pub(super) generation: u32,
    pub(super) state: State,
}

/// A node that describes nothing yet.
const VACANT: Node = Node {
    start: 0,
    granules: 0,
    before: NONE,
    after: NONE,
    previous: NONE,
    next: NONE,
    generation: 0,
    state: State::Vacant,
};

/// All nodes of one area.
pub(super) struct Slab {
    chunks: Vec<Box<[Node]>>,
    vacant: u32,
}

impl Slab {
    /// At most one node per granule will ever be needed; the list of chunks is made for that, so it never moves.
    pub(super) fn for_granules(granules: u32) -> Self {
        Self { chunks: Vec::with_capacity(granules.div_ceil(CHUNK_NODES) as usize), vacant: NONE }
    }

    pub(super) fn get(&self, index: u32) -> Option<&Node> {
        self.chunks.get((index / CHUNK_NODES) as usize).map(|chunk| &chunk[(index % CHUNK_NODES) as usize])
    }

    pub(super) fn node(&self, index: u32) -> &Node {
        &self.chunks[(index / CHUNK_NODES) as usize][(index % CHUNK_NODES) as usize]
    }

    pub(super) fn node_mut(&mut self, index: u32) -> &mut Node {
        &mut self.chunks[(index / CHUNK_NODES) as usize][(index % CHUNK_NODES) as usize]
    }

    /// Takes a slot for a free block of these granules.
    pub(super) fn take(&mut self, start: u32, granules: u32) -> u32 {
        if self.vacant == NONE {
            self.grow();
        }
        let index = self.vacant;
        let node = self.node_mut(index);
        let (vacant, generation) = (node.next, node.generation);
        *node = Node { start, granules, generation, state: State::Free, ..VACANT };
        self.vacant = vacant;
        index
    }

    pub(super) fn give(&mut self, index: u32) {
        let vacant = self.vacant;
        let node = self.node_mut(index);
        *node = Node { next: vacant, generation: node.generation, ..VACANT };
        self.vacant = index;
    }

    fn grow(&mut self) {
        let first = self.chunks.len() as u32 * CHUNK_NODES;
        let chunk = (first + 1..=first + CHUNK_NODES).map(|next| Node { next, ..VACANT });
        self.chunks.push(chunk.collect());
        self.node_mut(first + CHUNK_NODES - 1).next = NONE;
        self.vacant = first;
    }
}
