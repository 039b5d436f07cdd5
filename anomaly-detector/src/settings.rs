//! Where the rules learn what an app has said about its alarms.

use std::{fmt, sync::Arc};

use panopticon_core::control::ControlView;
pub use panopticon_core::detection::DetectionSettings as Settings;

type Ask = dyn Fn(&str) -> Arc<Settings> + Send + Sync;

/// Answers an app's settings as they are at the moment of asking.
#[derive(Clone)]
pub struct SettingsOf(Arc<Ask>);

impl SettingsOf {
    /// Asks `settings` for each app.
    pub fn new(settings: impl Fn(&str) -> Arc<Settings> + Send + Sync + 'static) -> Self {
        Self(Arc::new(settings))
    }

    /// Those of the policies, as they are in force in this process.
    pub fn in_force(view: ControlView) -> Self {
        Self::new(move |app| view.state().detection(app))
    }

    /// The same for every app.
    pub fn all(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        Self::new(move |_| Arc::clone(&settings))
    }

    /// The settings of `app`.
    pub fn of(&self, app: &str) -> Arc<Settings> {
        (self.0)(app)
    }
}

impl Default for SettingsOf {
    fn default() -> Self {
        Self::all(Settings::default())
    }
}

impl fmt::Debug for SettingsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsOf").finish_non_exhaustive()
    }
}
