//! The client as the fleet sees it.

use std::{io, ops::Range};

use super::{Client, Context, Manner, Standing, Wish};
use crate::{
    log::{self, Log},
    population::{Population, Target},
    user::User,
};

impl User for Client {
    fn new(user: u32, population: &Population) -> Self {
        Self::new(user, population.transport(user))
    }

    fn user(&self) -> u32 {
        self.user()
    }

    fn standing(&self) -> Standing {
        self.standing()
    }

    fn is_ready(&self) -> bool {
        self.is_ready()
    }

    fn is_away(&self) -> bool {
        self.is_away()
    }

    fn outstanding(&self) -> usize {
        self.outstanding()
    }

    fn take_wish(&mut self) -> Option<Wish> {
        self.take_wish()
    }

    fn has_output(&self) -> bool {
        self.has_output()
    }

    fn take_output(&mut self, now_ns: u64, cx: &mut Context) -> Vec<u8> {
        self.take_output(now_ns, cx)
    }

    fn deadline_ns(&self, cx: &Context) -> u64 {
        self.deadline_ns(cx)
    }

    fn rest(&mut self) {
        self.rest();
    }

    fn start(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        self.start(now_ns, intended_ns, cx);
    }

    fn call(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        self.call(now_ns, intended_ns, cx);
    }

    fn connected(&mut self, now_ns: u64, cx: &mut Context, result: io::Result<()>) {
        self.connected(now_ns, cx, result);
    }

    fn received(&mut self, now_ns: u64, cx: &mut Context, bytes: &mut [u8]) {
        self.received(now_ns, cx, bytes);
    }

    fn ended(&mut self, now_ns: u64, cx: &mut Context) {
        self.ended(now_ns, cx);
    }

    fn tick(&mut self, now_ns: u64, cx: &mut Context) {
        self.tick(now_ns, cx);
    }

    fn finish(&mut self, now_ns: u64, cx: &mut Context) {
        self.finish(now_ns, cx);
    }

    fn partner(cx: &Context, user: u32, choice: u32) -> u32 {
        cx.population.contact(user, choice)
    }

    fn send(&mut self, now_ns: u64, cx: &mut Context, target: Target, intended_ns: u64) {
        self.send(now_ns, cx, target, intended_ns);
    }

    fn publish(&mut self, now_ns: u64, cx: &mut Context, intended_ns: u64) {
        self.publish(now_ns, cx, intended_ns);
    }

    fn may_beat(&self) -> bool {
        self.may_beat()
    }

    fn beat(&mut self, now_ns: u64, intended_ns: u64, cx: &mut Context) {
        self.beat(now_ns, intended_ns, cx);
    }

    fn may_step_away(&self, cx: &Context) -> bool {
        self.may_step_away(cx)
    }

    fn step_away(&mut self, now_ns: u64, cx: &mut Context, manner: Manner) {
        self.step_away(now_ns, cx, manner);
    }

    fn break_off(&mut self, now_ns: u64, cx: &mut Context, back_ns: u64) {
        self.break_off(now_ns, cx, back_ns);
    }

    fn send_custom(&mut self, now_ns: u64, cx: &mut Context, number: usize, intended_ns: u64) {
        self.send_custom(now_ns, cx, number, intended_ns);
    }

    fn pull_for_verifier(&mut self, now_ns: u64, cx: &mut Context, range: log::Range) {
        self.pull_for_verifier(now_ns, cx, range);
    }

    /// The members of the room: everything else can be pulled.
    fn owed_to(population: &Population) -> Range<u32> {
        population.room_first..population.room_first + population.room_size
    }

    fn owed(&self, cx: &Context) -> u64 {
        let owed = self.owed_by_room(cx, cx.board.written());
        owed.map_or(0, |gap| u64::from(cx.board.certain_in(gap.from, gap.to)))
    }

    fn note_rest(&self, cx: &Context, log: &mut Log) {
        log.unanswered.extend(self.unanswered());
        log.room_owed.extend(self.owed_by_room(cx, cx.board.written()));
    }
}
