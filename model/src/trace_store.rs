//! The trace store as ClickHouse is: a statement writes its token down, then gives its part a name, then does
//! the same for the part of the view; a kill in between leaves the token without the part.

use std::collections::BTreeSet;

/// Records of the log, each with one row.
pub(crate) const RECORDS: usize = 2;

/// What a statement writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Block {
    /// Rows, which the view counts.
    Batch,
    /// Rows that were missing, which the view leaves alone; in which round of a settlement.
    Rows(u8),
    /// Counts that were missing; in which round of a settlement.
    Counts(u8),
}

/// What a deduplication token is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Token {
    from: u8,
    to: u8,
    block: Block,
    of_view: bool,
}

/// How far a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    /// On its way: the server does not know of it yet.
    Sent,
    /// Its part is there, or its token was; the view comes next.
    View,
}

/// A statement that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Statement {
    pub(crate) from: u8,
    pub(crate) to: u8,
    pub(crate) block: Block,
    /// The worker that waits for its end.
    pub(crate) awaited: Option<u8>,
    stage: Stage,
}

/// Tables, tokens and statements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TraceStore {
    /// How often each record's row is there.
    pub(crate) rows: [u8; RECORDS],
    /// How often each record is counted.
    pub(crate) counts: [u8; RECORDS],
    tokens: BTreeSet<Token>,
    /// In their order, which means nothing.
    pub(crate) statements: Vec<Statement>,
}

impl TraceStore {
    pub(crate) fn send(&mut self, worker: u8, from: u8, to: u8, block: Block) {
        self.statements.push(Statement { from, to, block, awaited: Some(worker), stage: Stage::Sent });
        self.statements.sort();
    }

    /// The next step of a statement: its own part, or that of the view.
    pub(crate) fn step(&mut self, number: usize, with_tokens: bool) {
        let Statement { from, to, block, stage, .. } = self.statements[number];
        if self.is_new(number) || !with_tokens {
            let counts = stage == Stage::View || matches!(block, Block::Counts(_));
            let table = if counts { &mut self.counts } else { &mut self.rows };
            for row in &mut table[usize::from(from)..usize::from(to)] {
                *row += 1;
            }
        }
        if stage == Stage::Sent && block == Block::Batch {
            self.statements[number].stage = Stage::View;
        } else {
            self.statements.remove(number);
        }
        self.statements.sort();
    }

    /// Writes the token of a statement's next part down; whether nobody has before.
    fn is_new(&mut self, number: usize) -> bool {
        let Statement { from, to, block, stage, .. } = self.statements[number];
        self.tokens.insert(Token { from, to, block, of_view: stage == Stage::View })
    }

    /// The server is killed, perhaps just when a statement's token was written down and its part was not.
    pub(crate) fn kill(&mut self, torn: Option<usize>) {
        if let Some(number) = torn {
            self.is_new(number);
            self.statements.remove(number);
        }
        self.stop();
    }

    /// What the server has begun ends, between its parts.
    pub(crate) fn stop(&mut self) {
        self.statements.retain(|statement| statement.stage == Stage::Sent);
    }

    /// Nobody waits for this worker's statements any more; they go on.
    pub(crate) fn abandon(&mut self, worker: u8) {
        for statement in self.statements.iter_mut().filter(|s| s.awaited == Some(worker)) {
            statement.awaited = None;
        }
        self.statements.sort();
    }

    pub(crate) fn has_awaited(&self, worker: u8) -> bool {
        self.statements.iter().any(|statement| statement.awaited == Some(worker))
    }
}
