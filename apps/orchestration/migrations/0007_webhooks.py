"""Webhooks in and out. Each event makes a delivery for each subscriber, in its own transaction: none is ever lost."""

import apps.orchestration.models.hook
import apps.orchestration.models.subscription
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


HOOKS = (
    {
        "name": "alertmanager",
        "description": "Prometheus's Alertmanager: an alert's labels name a server.",
        "items": "alerts",
        "fields": ["labels", "status"],
        "identity": ["fingerprint", "startsAt", "status"],
    },
    {"name": "server_status", "description": "A server, or who watches it, says how it is."},
)
ALERTED_SERVER = ["labels.server_id", "labels.citadel_server"]
RULES = (
    {"position": 10, "match": {"status": "firing"}, "server": ALERTED_SERVER, "action": "drain"},
    {"position": 20, "match": {"status": "resolved"}, "server": ALERTED_SERVER, "action": "enable"},
)

# The lock keeps a subscription from being deleted between here and the check of the foreign key.
MAKE_DELIVERIES = """
CREATE FUNCTION orchestration_make_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    told text := to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
BEGIN
    INSERT INTO orchestration_delivery
        (subscription_id, event_id, type, payload, state, attempts, created, next_at, last_error)
    SELECT s.id, NEW.id, NEW.type,
        jsonb_build_object('id', NEW.id, 'type', NEW.type, 'timestamp', told, 'server_id', NEW.server_id, 'at', told,
            'data', NEW.data),
        'pending', 0, now(), now(), ''
    FROM orchestration_subscription s
    WHERE s.enabled AND (s.events = '[]' OR s.events @> to_jsonb(NEW.type::text))
    FOR KEY SHARE;
    RETURN NULL;
END $$;
CREATE TRIGGER make_deliveries AFTER INSERT ON orchestration_event
    FOR EACH ROW EXECUTE FUNCTION orchestration_make_deliveries();
"""
MAKE_NO_DELIVERIES = "DROP FUNCTION orchestration_make_deliveries() CASCADE;"


def make_hooks(apps, _schema):
    hook, rule = apps.get_model("orchestration", "Hook"), apps.get_model("orchestration", "HookRule")
    made = [hook.objects.create(**fields) for fields in HOOKS]
    rule.objects.bulk_create(rule(hook=made[0], **fields) for fields in RULES)


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0006_named_models'),
    ]

    operations = [
        migrations.CreateModel(
            name='Hook',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=64, unique=True, validators=[django.core.validators.RegexValidator('\\A[a-z0-9][a-z0-9_-]{0,63}\\Z', "small letters, digits, '_' and '-', at most 64")])),
                ('enabled', models.BooleanField(default=True)),
                ('description', models.CharField(blank=True, max_length=200)),
                ('items', models.CharField(blank=True, help_text='Where a list of reports stands, such as "alerts"; empty: it is one.', max_length=255)),
                ('fields', models.JSONField(blank=True, default=list, help_text='What each report must have: ["labels"].', validators=[apps.orchestration.models.hook.check_paths])),
                ('identity', models.JSONField(blank=True, default=list, help_text='Fields that together make a report what it is: a second one with the same changes nothing.', validators=[apps.orchestration.models.hook.check_paths])),
                ('token_digest', models.CharField(blank=True, editable=False, max_length=64)),
                ('salt', models.CharField(blank=True, editable=False, max_length=64)),
            ],
            options={
                'verbose_name': 'incoming webhook',
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Subscription',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('subscription_id', models.CharField(default=apps.orchestration.models.subscription.new_id, editable=False, max_length=32, unique=True)),
                ('url', models.CharField(max_length=2000, validators=[apps.orchestration.models.subscription.check_url, django.core.validators.MaxLengthValidator(2000)])),
                ('events', models.JSONField(blank=True, default=list, help_text='Types it wants to hear of; empty: all.', validators=[apps.orchestration.models.subscription.check_types])),
                ('description', models.CharField(blank=True, max_length=200, validators=[django.core.validators.ProhibitNullCharactersValidator()])),
                ('enabled', models.BooleanField(default=True)),
                ('disabled_reason', models.CharField(blank=True, editable=False, max_length=200)),
                ('failures', models.PositiveIntegerField(default=0, editable=False, help_text='Events given up in a row.')),
                ('salt', models.CharField(default=apps.orchestration.models.subscription.new_salt, editable=False, max_length=64)),
                ('previous_salt', models.CharField(blank=True, editable=False, max_length=64)),
                ('rotated', models.DateTimeField(editable=False, null=True)),
                ('created', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.CharField(blank=True, editable=False, max_length=64)),
            ],
            options={
                'ordering': ['id'],
            },
        ),
        migrations.CreateModel(
            name='HookRule',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('position', models.PositiveSmallIntegerField(default=100, help_text='Rules are tried from the lowest on.')),
                ('match', models.JSONField(blank=True, default=dict, help_text='All must fit: {"status": "firing"}.', validators=[apps.orchestration.models.hook.check_match])),
                ('server', models.JSONField(help_text='Where the server\'s id stands, the first that is there: ["labels.server_id"].', validators=[apps.orchestration.models.hook.check_paths])),
                ('action', models.CharField(choices=[('drain', 'drain'), ('enable', 'enable'), ('disable', 'disable'), ('healthy', 'call it healthy'), ('degraded', 'call it degraded'), ('unhealthy', 'call it unhealthy'), ('keep', 'only keep the report')], max_length=16)),
                ('hook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='rules', to='orchestration.hook')),
            ],
            options={
                'verbose_name': 'rule',
                'ordering': ['position', 'id'],
            },
        ),
        migrations.CreateModel(
            name='ReceivedWebhook',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField(auto_now_add=True, db_index=True)),
                ('sender', models.CharField(help_text='The id of the key, or how else it was proved.', max_length=64)),
                ('message_id', models.CharField(blank=True, max_length=255)),
                ('outcome', models.CharField(max_length=16)),
                ('actions', models.JSONField(default=list)),
                ('body', models.JSONField(help_text='What came, where it was not too large to keep.', null=True)),
                ('hook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='received', to='orchestration.hook')),
            ],
            options={
                'verbose_name': 'received webhook',
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='HookMark',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('digest', models.CharField(max_length=64)),
                ('at', models.DateTimeField(auto_now_add=True, db_index=True)),
                ('hook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='orchestration.hook')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('hook', 'digest'), name='orchestration_hook_acts_once')],
            },
        ),
        migrations.CreateModel(
            name='Delivery',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('event_id', models.BigIntegerField()),
                ('type', models.CharField(max_length=40)),
                ('payload', models.JSONField()),
                ('state', models.CharField(choices=[('pending', 'Pending'), ('delivered', 'Delivered'), ('dead', 'given up')], default='pending', max_length=16)),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('created', models.DateTimeField(auto_now_add=True, db_index=True)),
                ('next_at', models.DateTimeField(help_text='When it is tried again.')),
                ('ended', models.DateTimeField(null=True)),
                ('last_status', models.PositiveSmallIntegerField(null=True)),
                ('last_error', models.CharField(blank=True, max_length=200)),
                ('subscription', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='orchestration.subscription')),
            ],
            options={
                'verbose_name_plural': 'deliveries',
                'ordering': ['-id'],
                'indexes': [models.Index(condition=models.Q(('state', 'pending')), fields=['next_at'], name='orchestration_delivery_due'), models.Index(fields=['subscription', '-id'], name='orchestration_delivery_of_sub')],
            },
        ),
        migrations.RunPython(make_hooks, migrations.RunPython.noop),
        migrations.RunSQL(MAKE_DELIVERIES, MAKE_NO_DELIVERIES),
    ]
