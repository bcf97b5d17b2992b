//! The HTTP operations of the users' service. Registration, if it is open, login and what is done with
//! refresh tokens are for anybody; the rest is for users, and a change for the user alone.

use std::sync::Arc;

use super::{
    HttpSettings,
    door::Door,
    routes::{Routes, operations},
};
use crate::api::{CallerGuard, UsersApi};

/// The operations, to be merged with those of [`super::router`].
pub fn router(api: Arc<dyn UsersApi>, guard: CallerGuard, settings: HttpSettings) -> Routes {
    let mut routes = Routes::default();
    let door = Door::new(api, guard, settings);
    operations! { routes, door, "AccountService" for callers;
        POST "/v1/users" => register_user(Anybody)
            [AlreadyExists, NotPermitted, WordBlocked];
        POST "/v1/login" => login_user(Anybody) [BadCredentials, NotPermitted];
        POST "/v1/token/refresh" => refresh_token(Anybody) [NotPermitted];
        POST "/v1/token/revoke" => revoke_token(Anybody) [];
        POST "/v1/users/{user_id}/password" => change_password(Known)
            [BadCredentials, NotFound, NotPermitted];
        GET "/v1/users/{user_id}" => get_user(Known) [NotFound];
        PATCH "/v1/users/{user_id}" => update_user(Known)
            [NotFound, NotPermitted, WordBlocked];
        GET "/v1/users" => search_users(Known) [];
    }
    routes
}
