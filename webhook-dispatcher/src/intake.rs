//! From guard actions to deliveries: one for each endpoint that wants the message, pending before the first
//! attempt is made.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use panopticon_core::{
    control::ControlState,
    log::{EventLog, LogError, Output, Stored},
    stage::dead_letter,
    time::Time,
    topic::Topic,
};
use panopticon_proto::{
    control::WebhookEndpoint,
    log::{Delivery, ReplayDelivery},
};
use prost::Message as _;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    NAME,
    book::Book,
    delivery::{self, DEAD},
    message::{self, Action, Message},
};

/// What follows from a batch of guard actions.
#[derive(Debug, Default)]
pub struct Intake {
    /// New and replayed deliveries.
    pub deliveries: Vec<(Uuid, Delivery)>,
    /// Deliveries that operators want to be made again; looked up before the commit.
    wishes: Vec<ReplayDelivery>,
    /// Records that cannot be understood.
    pub dead_letters: Vec<Output>,
    taken: HashSet<Uuid>,
}

impl Intake {
    /// Reads `records` of `partition`.
    pub fn read(records: &[Stored], partition: u32, control: &ControlState, book: &Book, now: Time) -> Self {
        let mut intake = Self::default();
        for stored in records.iter().filter(|stored| stored.record.is_for(NAME)) {
            match message::read(stored.record.bytes()) {
                Ok(Action::Tell(message)) => intake.tell(&message, control, book, now),
                Ok(Action::Replay(wish)) => intake.wish(wish, control),
                Err(error) => intake.dead_letters.push(dead_letter(
                    NAME,
                    Topic::GuardActions,
                    partition,
                    stored,
                    &error.to_string(),
                    now,
                )),
            }
        }
        intake
    }

    fn tell(&mut self, message: &Message, control: &ControlState, book: &Book, now: Time) {
        for endpoint in receivers(message, control) {
            let endpoint_id = &endpoint.endpoint_id;
            let id = delivery::delivery_id(&message.webhook_id, endpoint_id);
            if book.knows(id) || !self.taken.insert(id) {
                debug!(delivery_id = %id, "the action came before; its delivery stays as it is");
                continue;
            }
            let mut delivery = delivery::new(message, endpoint_id, now);
            if !book.has_room_for(endpoint_id) {
                let limit = book.limits().pending_per_endpoint;
                warn!(endpoint_id, client_id = message.client_id, delivery_id = %id, limit, "too many messages wait for an endpoint; this one is dead until it is replayed");
                metrics::counter!("panopticon_webhook_backlog_full_total", "of" => "endpoint").increment(1);
                let error = format!("backlog_full: {limit} messages were waiting for this endpoint already");
                delivery::end(&mut delivery, DEAD, &error, now);
            }
            self.deliveries.push((id, delivery));
        }
    }

    fn wish(&mut self, wish: ReplayDelivery, control: &ControlState) {
        if control.webhook(&wish.endpoint_id).is_some_and(|endpoint| !endpoint.disabled) {
            self.wishes.push(wish);
        } else {
            info!(
                delivery_id = wish.delivery_id,
                endpoint_id = wish.endpoint_id,
                "a replay is ignored: its endpoint is disabled or removed"
            );
        }
    }

    /// Looks up the deliveries to replay. The table is read only for those that ended, since of them the
    /// book holds no bodies.
    pub async fn look_up(
        &mut self,
        log: &Arc<dyn EventLog>,
        partition: u32,
        book: &Book,
        now: Time,
    ) -> Result<(), LogError> {
        let mut table = None;
        for wish in std::mem::take(&mut self.wishes) {
            let id = Uuid::parse_str(&wish.delivery_id).ok().filter(|id| book.knows(*id));
            let found = match id {
                None => None,
                Some(id) if book.is_under_way(id) => {
                    info!(delivery_id = %id, "a replay is ignored: an attempt is under way");
                    continue;
                }
                Some(id) => match book.get(id) {
                    Some(pending) => Some((id, pending.clone())),
                    None => {
                        let rows = match table.take() {
                            Some(rows) => rows,
                            None => log.table(Topic::WebhookDeliveries, partition).await?,
                        };
                        let row = find(&rows, id);
                        table = Some(rows);
                        row.map(|delivery| (id, delivery))
                    }
                },
            };
            match found.filter(|(_, delivery)| delivery.endpoint_id == wish.endpoint_id) {
                Some((id, mut delivery)) if self.taken.insert(id) => {
                    delivery::replay(&mut delivery, now);
                    self.deliveries.push((id, delivery));
                }
                Some(_) => {}
                None => info!(
                    delivery_id = wish.delivery_id,
                    "a replay is ignored: there is no such delivery (any more)"
                ),
            }
        }
        Ok(())
    }
}

fn find(rows: &[(Bytes, Bytes)], id: Uuid) -> Option<Delivery> {
    let key = id.to_string();
    let (_, value) = rows.iter().find(|(found, _)| found == key.as_bytes())?;
    Delivery::decode(&**value).ok()
}

/// The enabled endpoints that want the message.
fn receivers(message: &Message, control: &ControlState) -> Vec<Arc<WebhookEndpoint>> {
    let mut endpoints = control.webhooks(&message.client_id);
    endpoints.retain(|endpoint| {
        let wanted = match &message.only_to {
            Some(only) => endpoint.endpoint_id == *only,
            None => endpoint.types.is_empty() || endpoint.types.contains(&message.r#type),
        };
        wanted && !endpoint.disabled
    });
    endpoints
}

#[cfg(test)]
mod tests {
    use panopticon_core::{
        config::Config,
        control::key,
        log::{Record, Replay},
    };
    use panopticon_proto::log::{GuardAction, KillSwitch, TestMessage};

    use super::*;
    use crate::book::Limits;

    fn control(endpoints: &[(&str, &[&str], bool)]) -> ControlState {
        let mut control = ControlState::default();
        for &(id, types, disabled) in endpoints {
            let endpoint = WebhookEndpoint {
                endpoint_id: id.to_owned(),
                client_id: "app".to_owned(),
                types: types.iter().map(|&name| name.to_owned()).collect(),
                disabled,
                ..WebhookEndpoint::default()
            };
            control.apply(key("webhook", &[id]).as_bytes(), Some(&endpoint.encode_to_vec()));
        }
        control
    }

    fn book() -> Book {
        Book::new(Limits::new(&Config::default().webhooks))
    }

    fn stored(offset: u64, action: &GuardAction) -> Stored {
        Stored { offset, appended_at: Time::EPOCH, record: Record::message(action.encode_to_vec()) }
    }

    fn kill(id: &str) -> GuardAction {
        GuardAction {
            action_id: id.to_owned(),
            r#type: "panopticon.kill_switch".to_owned(),
            client_id: "app".to_owned(),
            kill: Some(KillSwitch::default()),
            ..GuardAction::default()
        }
    }

    fn read(records: &[Stored], control: &ControlState, book: &Book) -> Intake {
        Intake::read(records, 0, control, book, Time::from_secs(1))
    }

    fn endpoints(intake: &Intake) -> Vec<&str> {
        intake.deliveries.iter().map(|(_, delivery)| delivery.endpoint_id.as_str()).collect()
    }

    #[test]
    fn a_message_goes_to_the_enabled_endpoints_that_want_its_type() {
        let control = control(&[
            ("all", &[], false),
            ("kills", &["panopticon.kill_switch"], false),
            ("others", &["panopticon.anomaly_detected"], false),
            ("off", &[], true),
        ]);
        let intake = read(&[stored(0, &kill("a1"))], &control, &book());
        assert_eq!(endpoints(&intake), ["all", "kills"]);
        let test = GuardAction {
            test: Some(TestMessage { endpoint_id: "others".to_owned(), ..TestMessage::default() }),
            kill: None,
            r#type: "panopticon.test".to_owned(),
            ..kill("a2")
        };
        assert_eq!(endpoints(&read(&[stored(0, &test)], &control, &book())), ["others"]);
    }

    #[test]
    fn an_action_that_comes_again_makes_no_second_delivery() {
        let control = control(&[("e", &[], false)]);
        let mut intake = read(&[stored(0, &kill("a1")), stored(1, &kill("a1"))], &control, &book());
        let mut known = book();
        let (id, delivery) = intake.deliveries.pop().unwrap();
        assert!(intake.deliveries.is_empty());
        known.put(id, delivery);
        assert!(read(&[stored(2, &kill("a1"))], &control, &known).deliveries.is_empty());
    }

    #[test]
    fn what_cannot_be_understood_becomes_a_dead_letter_and_its_neighbours_go_out() {
        let control = control(&[("e", &[], false)]);
        let broken =
            Stored { offset: 0, appended_at: Time::EPOCH, record: Record::message(&b"\xff\xff"[..]) };
        let mut replayed = stored(1, &kill("a2"));
        replayed.record.replay = Some(Replay { stage: "store".to_owned(), first_offset: 0 });
        let intake = read(&[broken, replayed, stored(2, &kill("a3"))], &control, &book());
        assert_eq!((intake.dead_letters.len(), endpoints(&intake)), (1, vec!["e"]));
        assert_eq!(intake.deliveries[0].1.webhook_id, "a3");
    }
}
