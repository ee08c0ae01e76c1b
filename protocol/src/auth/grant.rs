//! What a new token grants: only the combinations of a role and topics that make sense.

use super::{Scope, TokenError};
use crate::message::Role;

/// What a new token grants. A scope of `None` is everything that the role may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// To read these topics.
    Read(Option<Scope>),
    /// To append, and to read.
    Append {
        /// Topics to read.
        read: Option<Scope>,
        /// Topics to append to.
        append: Option<Scope>,
    },
    /// Everything. It takes no topics: an admin may start modules, which may append anywhere.
    Admin,
    /// To run the modules of the store. It takes no topics either.
    Host,
}

impl Grant {
    /// The grant of a role, limited to topics.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] when the role does not take these topics.
    pub fn of(role: Role, read: Option<Scope>, append: Option<Scope>) -> Result<Self, TokenError> {
        match role {
            Role::Read if matches!(append, None | Some(Scope::Nothing)) => Ok(Self::Read(read)),
            Role::Read => {
                let text = "the role read appends nowhere; take the role append";
                Err(TokenError::Invalid(text.to_owned()))
            }
            Role::Append => Ok(Self::Append { read, append }),
            Role::Admin | Role::Host if read.is_some() || append.is_some() => {
                let text = format!(
                    "the role {role} takes no topics: it may start modules, which may append \
                     anywhere"
                );
                Err(TokenError::Invalid(text))
            }
            Role::Admin | Role::Host => Ok(Self::from(role)),
        }
    }

    /// Its role.
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Read(_) => Role::Read,
            Self::Append { .. } => Role::Append,
            Self::Admin => Role::Admin,
            Self::Host => Role::Host,
        }
    }

    /// The topics to read, and those to append to, as they were given.
    pub(super) const fn scopes(&self) -> (Option<&Scope>, Option<&Scope>) {
        match self {
            Self::Read(read) => (read.as_ref(), Some(&Scope::Nothing)),
            Self::Append { read, append } => (read.as_ref(), append.as_ref()),
            Self::Admin | Self::Host => (None, None),
        }
    }
}

impl From<Role> for Grant {
    /// Everything that the role may have.
    fn from(role: Role) -> Self {
        match role {
            Role::Read => Self::Read(None),
            Role::Append => Self::Append { read: None, append: None },
            Role::Admin => Self::Admin,
            Role::Host => Self::Host,
        }
    }
}
