"""The classes to begin with; changes of classes raise the epoch, and each event is told as soon as it is there."""

from django.db import migrations

from apps.orchestration.models.epoch import create_trigger, drop_trigger

CLASSES = (
    {"name": "lightweight", "position": 10, "patterns": ["phi3*", "openchat*"], "capability": "lightweight"},
    {"name": "heavyweight", "position": 20, "patterns": ["mixtral*", "nous-hermes2*"], "equal_shares": True},
    {
        "name": "embedding",
        "position": 30,
        "patterns": ["nomic-embed-text*", "*embed*", "all-minilm*", "bge-*", "e5-*", "gte-*"],
    },
    {"name": "specialized", "position": 40, "capability": "business_models", "fallback": False},
)

TELL_EVENTS = """
CREATE FUNCTION orchestration_tell_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('citadel_events', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER tell_event AFTER INSERT ON orchestration_event
    FOR EACH ROW EXECUTE FUNCTION orchestration_tell_event();
"""
TELL_NO_EVENTS = "DROP FUNCTION orchestration_tell_event() CASCADE;"


def make_classes(apps, _schema):
    model = apps.get_model("orchestration", "ModelClass")
    model.objects.bulk_create(model(**fields) for fields in CLASSES)


class Migration(migrations.Migration):
    dependencies = [("orchestration", "0004_fleet")]
    operations = [
        migrations.RunPython(make_classes, migrations.RunPython.noop),
        migrations.RunSQL(create_trigger("orchestration_modelclass"), drop_trigger("orchestration_modelclass")),
        migrations.RunSQL(TELL_EVENTS, TELL_NO_EVENTS),
    ]
