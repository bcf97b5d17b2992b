//! What clients and services do to groups, as writes; and the pages of members, requests and
//! receipts. Who may do what is the store's to decide, in the same commit.

use millrace_logic_sdk::{Batch, Inbound, Refused};
use millrace_protocol::{
    Code,
    api::{ChangeGroupRequest, change_group_request::Act},
    chat::{
        AnnounceToGroup, AnswerJoinRequest, CreateGroup, DissolveGroup, GroupActReply,
        GroupJoinRequests, GroupJoinRequestsReply, GroupMembers, GroupMembersReply, InviteToGroup,
        JoinGroup, LeaveGroup, MuteGroup, MuteMembers, Notice, PullReceipts, PullReceiptsReply,
        RemoveFromGroup, SetGroupRole, TransferGroup, UpdateGroup,
    },
    command,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    Core,
    receiver::{decode, unix_ms},
};
use crate::storage::{
    StoreError, conversation_id,
    groups::{GroupAct, GroupChange, GroupChanged, ReceiptFilter, Role},
};

/// `Notice.type` of a request to join, to the owner and the administrators.
const NOTICE_JOIN_REQUEST: u32 = 2001;
/// `Notice.type` of a request to join that was turned down, to who asked.
const NOTICE_JOIN_REFUSED: u32 = 2002;

/// Rows of one page, at most and when the client names no limit.
const PAGE_MAX: usize = 100;

/// Members that one page of receipts looks at.
const RECEIPTS_LOOKED_AT_MAX: usize = 2_000;

const NOT_A_MEMBER: &str = "Only members of the group may do this.";
const NO_GROUP: &str = "There is no such group.";

/// Whether a command is an act on a group, answered with [`GroupActReply`].
pub(crate) fn is_act(command: u16) -> bool {
    (command::CREATE_GROUP..=command::DISSOLVE_GROUP).contains(&command)
}

/// Reads a client's act; `None` when it was refused here.
pub(crate) fn from_frame(core: &Core, inbound: &Inbound) -> Option<Result<GroupChange, String>> {
    let act = match inbound.command {
        command::CREATE_GROUP => Act::Create(decode::<CreateGroup>(core, inbound)?),
        command::UPDATE_GROUP => Act::Update(decode::<UpdateGroup>(core, inbound)?),
        command::ANNOUNCE_TO_GROUP => Act::Announce(decode::<AnnounceToGroup>(core, inbound)?),
        command::JOIN_GROUP => Act::Join(decode::<JoinGroup>(core, inbound)?),
        command::ANSWER_JOIN_REQUEST => {
            Act::AnswerJoinRequest(decode::<AnswerJoinRequest>(core, inbound)?)
        }
        command::INVITE_TO_GROUP => Act::Invite(decode::<InviteToGroup>(core, inbound)?),
        command::LEAVE_GROUP => Act::Leave(decode::<LeaveGroup>(core, inbound)?),
        command::REMOVE_FROM_GROUP => Act::Remove(decode::<RemoveFromGroup>(core, inbound)?),
        command::SET_GROUP_ROLE => Act::SetRole(decode::<SetGroupRole>(core, inbound)?),
        command::TRANSFER_GROUP => Act::Transfer(decode::<TransferGroup>(core, inbound)?),
        command::MUTE_MEMBERS => Act::MuteMembers(decode::<MuteMembers>(core, inbound)?),
        command::MUTE_GROUP => Act::Mute(decode::<MuteGroup>(core, inbound)?),
        command::DISSOLVE_GROUP => Act::Dissolve(decode::<DissolveGroup>(core, inbound)?),
        other => unreachable!("{other:#06x} is no act on a group"),
    };
    Some(change(None, Some(inbound.session.user_id.to_string()), act))
}

/// Reads a service's act.
pub(crate) fn from_request(request: ChangeGroupRequest) -> Result<GroupChange, String> {
    let Some(act) = request.act else {
        return Err("An act is needed, such as \"announce\".".into());
    };
    let actor = Some(request.actor_user_id).filter(|actor| !actor.is_empty());
    change(Some(request.group_id), actor, act)
}

/// An act as the store takes it. `group_id` comes before the one inside of the act.
fn change(
    group_id: Option<String>,
    actor: Option<String>,
    act: Act,
) -> Result<GroupChange, String> {
    let (inside, act) = match act {
        Act::Create(CreateGroup {
            group_id,
            name,
            avatar,
            members,
            members_max,
            join_rule,
            invite_rule,
        }) => {
            let act =
                GroupAct::Create { name, avatar, members, members_max, join_rule, invite_rule };
            (group_id, act)
        }
        Act::Update(UpdateGroup {
            group_id,
            name,
            avatar,
            members_max,
            join_rule,
            invite_rule,
        }) => (group_id, GroupAct::Update { name, avatar, members_max, join_rule, invite_rule }),
        Act::Announce(AnnounceToGroup { group_id, text }) => {
            (group_id, GroupAct::Announce { text })
        }
        Act::Join(JoinGroup { group_id, message }) => (group_id, GroupAct::Join { message }),
        Act::AnswerJoinRequest(AnswerJoinRequest { group_id, user_id, accept }) => {
            (group_id, GroupAct::AnswerJoinRequest { user_id, accept })
        }
        Act::Invite(InviteToGroup { group_id, user_ids }) => {
            (group_id, GroupAct::Invite { user_ids })
        }
        Act::Leave(LeaveGroup { group_id }) => (group_id, GroupAct::Leave),
        Act::Remove(RemoveFromGroup { group_id, user_ids }) => {
            (group_id, GroupAct::Remove { user_ids })
        }
        Act::SetRole(SetGroupRole { group_id, user_id, role }) => {
            let role = match role {
                0 => Role::Member,
                1 => Role::Administrator,
                _ => return Err("role is 0 (member) or 1 (administrator).".into()),
            };
            (group_id, GroupAct::SetRole { user_id, role })
        }
        Act::Transfer(TransferGroup { group_id, user_id }) => {
            (group_id, GroupAct::Transfer { user_id })
        }
        Act::MuteMembers(MuteMembers { group_id, user_ids, until_ms }) => {
            (group_id, GroupAct::MuteMembers { user_ids, until_ms })
        }
        Act::Mute(MuteGroup { group_id, muted }) => (group_id, GroupAct::MuteGroup { muted }),
        Act::Dissolve(DissolveGroup { group_id }) => (group_id, GroupAct::Dissolve),
    };
    let mut group_id = group_id.filter(|group_id| !group_id.is_empty()).unwrap_or(inside);
    if group_id.is_empty() && matches!(act, GroupAct::Create { .. }) {
        group_id = Uuid::now_v7().simple().to_string();
    }
    Ok(GroupChange { group_id, actor, at_ms: unix_ms(), notice_id: Uuid::now_v7(), act })
}

/// Looks for words that are not let through in what people will read of an act.
///
/// # Errors
/// `word_blocked`.
pub(crate) fn screen(core: &Core, change: &mut GroupChange) -> Result<(), Refused> {
    let text = match &mut change.act {
        GroupAct::Create { name, .. } | GroupAct::Update { name: Some(name), .. } => name,
        GroupAct::Announce { text } => text,
        GroupAct::Join { message } => message,
        _ => return Ok(()),
    };
    let actor = change.actor.as_deref().unwrap_or_default();
    core.words.screen(actor, &change.group_id, &change.notice_id.to_string(), text)
}

/// The reply of an act that was stored.
pub(crate) fn reply_of(changed: &GroupChanged) -> GroupActReply {
    GroupActReply {
        code: Code::Ok.number(),
        reason: String::new(),
        group_id: changed.group_id.clone(),
        conversation_id: changed.conversation_id.clone(),
        changed: changed.changed,
        waiting: changed.waiting,
        sequence: changed.told.as_ref().map_or(0, |told| told.message.sequence),
    }
}

/// Tells those who decide that somebody wants to come in, and who was turned down. Live: who is
/// away finds the requests by GROUP_JOIN_REQUESTS.
pub(crate) fn notify(core: &Core, out: &mut Batch<'_>, changed: &GroupChanged) {
    let mut send = |kind: u32, users: &[String]| {
        let mut receivers = Vec::new();
        core.online.deliveries().everybody(users, None, &mut receivers);
        if !receivers.is_empty() || core.peers.is_some() {
            let notice = Notice {
                notice_id: Uuid::now_v7().to_string(),
                r#type: kind,
                body: json!({ "group_id": changed.group_id, "waiting": changed.waiting })
                    .to_string(),
                sent_at_ms: unix_ms(),
            };
            out.send_message(&receivers, command::NOTICE, &notice);
            if let Some(peers) = &core.peers {
                peers.to_users(users, command::NOTICE, &notice);
            }
        }
    };
    if !changed.asked.is_empty() {
        send(NOTICE_JOIN_REQUEST, &changed.asked);
    }
    if !changed.turned_away.is_empty() {
        send(NOTICE_JOIN_REFUSED, &changed.turned_away);
    }
}

// --- pages --------------------------------------------------------------------------------------

fn limit_of(limit: u32) -> usize {
    match limit as usize {
        0 => PAGE_MAX,
        limit => limit.min(PAGE_MAX),
    }
}

/// What a failed read is told as. Failures of the store come with a delay.
pub(crate) fn unread(core: &Core, error: &StoreError) -> Refused {
    let code = error.code();
    if matches!(error, StoreError::NotFound | StoreError::NotMember) {
        return Refused::new(code, code.sentence());
    }
    tracing::error!(%error, "a read failed");
    Refused::new(code, code.sentence()).retry_after(core.retry_after_ms_of(code))
}

/// A page of members. `viewer` has to be one of them; `None` is the system.
pub(crate) async fn members_page(
    core: &Core,
    viewer: Option<&str>,
    request: GroupMembers,
) -> Result<GroupMembersReply, Refused> {
    let GroupMembers { group_id, after_user_id, limit } = request;
    check_role(core, viewer, &group_id, Role::Member).await?;
    let page = core.store.group_members(&group_id, &after_user_id, limit_of(limit)).await;
    match page.map_err(|error| unread(core, &error))? {
        None => Err(Refused::new(Code::NotFound, NO_GROUP)),
        Some(page) => Ok(GroupMembersReply {
            members: page.members,
            complete: page.complete,
            member_count: page.member_count,
            ..GroupMembersReply::default()
        }),
    }
}

/// A page of those who want to come in. `viewer` has to be an administrator.
pub(crate) async fn join_requests_page(
    core: &Core,
    viewer: Option<&str>,
    request: GroupJoinRequests,
) -> Result<GroupJoinRequestsReply, Refused> {
    let GroupJoinRequests { group_id, after_user_id, limit } = request;
    check_role(core, viewer, &group_id, Role::Administrator).await?;
    let page = core.store.join_requests(&group_id, &after_user_id, limit_of(limit)).await;
    match page.map_err(|error| unread(core, &error))? {
        None => Err(Refused::new(Code::NotFound, NO_GROUP)),
        Some(page) => Ok(GroupJoinRequestsReply {
            requests: page.requests,
            complete: page.complete,
            ..GroupJoinRequestsReply::default()
        }),
    }
}

/// A page of the members' cursors. `viewer` has to be a member.
pub(crate) async fn receipts_page(
    core: &Core,
    viewer: Option<&str>,
    request: PullReceipts,
) -> Result<PullReceiptsReply, Refused> {
    let PullReceipts { conversation_id, sequence, filter, after_user_id, limit } = request;
    let filter = match filter {
        0 => ReceiptFilter::Everybody,
        1 => ReceiptFilter::Read,
        2 => ReceiptFilter::Unread,
        _ => return Err(Refused::new(Code::BadRequest, "filter is 0, 1 or 2.")),
    };
    let members = core.store.members(&conversation_id).await;
    let Some(members) = members.map_err(|error| unread(core, &error))? else {
        return Err(Refused::new(Code::NotFound, "There is no such conversation."));
    };
    if let Some(viewer) = viewer
        && members.binary_search_by(|member| (**member).cmp(viewer)).is_err()
    {
        let reason = "Only members of the conversation may do this.";
        return Err(Refused::new(Code::NotPermitted, reason));
    }
    let page = core
        .store
        .receipts(
            &conversation_id,
            sequence,
            filter,
            &after_user_id,
            limit_of(limit),
            RECEIPTS_LOOKED_AT_MAX,
        )
        .await
        .map_err(|error| unread(core, &error))?;
    Ok(PullReceiptsReply {
        receipts: page.receipts,
        complete: page.complete,
        after_user_id: page.after_user_id,
        member_count: page.member_count,
        ..PullReceiptsReply::default()
    })
}

/// Refuses a viewer without this role in a group that there is.
async fn check_role(
    core: &Core,
    viewer: Option<&str>,
    group_id: &str,
    least: Role,
) -> Result<(), Refused> {
    let Some(viewer) = viewer else { return Ok(()) };
    let role = core.store.group_role(group_id, viewer).await;
    match role.map_err(|error| unread(core, &error))? {
        Some(role) if role >= least => Ok(()),
        Some(_) => Err(Refused::new(Code::RoleTooLow, Code::RoleTooLow.sentence())),
        None => {
            let members = core.store.members(&conversation_id::group(group_id)).await;
            match members.map_err(|error| unread(core, &error))? {
                Some(_) => Err(Refused::new(Code::NotPermitted, NOT_A_MEMBER)),
                None => Err(Refused::new(Code::NotFound, NO_GROUP)),
            }
        }
    }
}

/// Answers GROUP_MEMBERS.
pub(crate) async fn members(core: &Core, inbound: &Inbound) {
    let Some(request) = decode(core, inbound) else { return };
    match members_page(core, Some(&inbound.session.user_id), request).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) => answer_refused(core, inbound, refused, |code, reason| {
            inbound.reply_message(&GroupMembersReply { code, reason, ..Default::default() });
        }),
    }
}

/// Answers GROUP_JOIN_REQUESTS.
pub(crate) async fn join_requests(core: &Core, inbound: &Inbound) {
    let Some(request) = decode(core, inbound) else { return };
    match join_requests_page(core, Some(&inbound.session.user_id), request).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) => answer_refused(core, inbound, refused, |code, reason| {
            inbound.reply_message(&GroupJoinRequestsReply { code, reason, ..Default::default() });
        }),
    }
}

/// Answers PULL_RECEIPTS.
pub(crate) async fn receipts(core: &Core, inbound: &Inbound) {
    let Some(request) = decode(core, inbound) else { return };
    match receipts_page(core, Some(&inbound.session.user_id), request).await {
        Ok(reply) => inbound.reply_message(&reply),
        Err(refused) => answer_refused(core, inbound, refused, |code, reason| {
            inbound.reply_message(&PullReceiptsReply { code, reason, ..Default::default() });
        }),
    }
}

/// What the request itself got wrong goes into its reply; a failure of ours is an ERROR with a
/// delay.
pub(crate) fn answer_refused(
    core: &Core,
    inbound: &Inbound,
    refused: Refused,
    reply: impl FnOnce(u32, String),
) {
    core.count_refusal(refused.code);
    if refused.retry_after_ms > 0 {
        inbound.refuse(refused.code, &refused.reason, refused.retry_after_ms);
    } else {
        reply(refused.code.number(), refused.reason);
    }
}
