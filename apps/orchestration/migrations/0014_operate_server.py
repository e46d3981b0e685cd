"""The console asks for a permission of its own to operate servers: who may do that need not change their entries."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("orchestration", "0013_said_of_models")]

    operations = [
        migrations.AlterModelOptions(
            name="server",
            options={
                "ordering": ["server_id"],
                "permissions": [("operate_server", "Can drain, enable, disable and ask servers")],
            },
        ),
    ]
