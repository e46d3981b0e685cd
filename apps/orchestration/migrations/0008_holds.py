"""For which causes of webhooks a server is draining; what is still to be delivered is found by its subscriber."""

import apps.orchestration.models.hook
import django.db.models.deletion
from django.db import migrations, models

BY = "webhook "
"""What an event says before the type's name, where a webhook has drained a server."""


def name_the_cause_of_alerts(apps, _schema):
    apps.get_model("orchestration", "Hook").objects.filter(name="alertmanager").update(cause=["fingerprint"])


def hold_what_webhooks_have_drained(apps, _schema):
    server, event, hook, hold = (
        apps.get_model("orchestration", name) for name in ("Server", "Event", "Hook", "Hold")
    )
    for drained in server.objects.filter(state="draining"):
        last = event.objects.filter(type="server_drained", server_id=drained.server_id).order_by("-id").first()
        by = str((last.data or {}).get("by", "")) if last else ""
        for known in hook.objects.filter(name=by.removeprefix(BY)) if by.startswith(BY) else ():
            hold.objects.create(server=drained, hook=known, cause="")


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0007_webhooks'),
    ]

    operations = [
        migrations.CreateModel(
            name='Hold',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('cause', models.CharField(blank=True, help_text='Digest of what the reports of one cause share.', max_length=64)),
            ],
        ),
        migrations.RemoveIndex(
            model_name='delivery',
            name='orchestration_delivery_due',
        ),
        migrations.AddField(
            model_name='hook',
            name='cause',
            field=models.JSONField(blank=True, default=list, help_text="Fields that the reports of one trouble share, from its beginning to its end; none: it is one a server.", validators=[apps.orchestration.models.hook.check_paths]),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('state', 'pending')), fields=['subscription', 'id'], name='orchestration_delivery_pending'),
        ),
        migrations.AddField(
            model_name='hold',
            name='hook',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='orchestration.hook'),
        ),
        migrations.AddField(
            model_name='hold',
            name='server',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='holds', to='orchestration.server'),
        ),
        migrations.AddConstraint(
            model_name='hold',
            constraint=models.UniqueConstraint(fields=('server', 'hook', 'cause'), name='orchestration_hold_is_one'),
        ),
        migrations.RunPython(name_the_cause_of_alerts, migrations.RunPython.noop),
        migrations.RunPython(hold_what_webhooks_have_drained, migrations.RunPython.noop),
    ]
