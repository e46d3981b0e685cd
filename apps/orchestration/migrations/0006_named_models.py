"""Which models somebody has named, and what may stand in an address; a server's kind may be found out later."""

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0005_classes_and_events'),
    ]

    operations = [
        migrations.AddField(
            model_name='servedmodel',
            name='named',
            field=models.BooleanField(db_default=False, default=False, help_text='Somebody named it: it stays though its server does not list it.'),
        ),
        migrations.AlterField(
            model_name='server',
            name='base_path',
            field=models.CharField(blank=True, help_text='What comes before /v1, where there is more.', max_length=200, validators=[django.core.validators.RegexValidator("\\A(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*\\Z", 'a path like /services/llm')]),
        ),
        migrations.AlterField(
            model_name='server',
            name='hostname',
            field=models.CharField(max_length=253, validators=[django.core.validators.RegexValidator('\\A([A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)\\Z', "a host's name or address")]),
        ),
        migrations.AlterField(
            model_name='server',
            name='kind',
            field=models.CharField(blank=True, choices=[('openai', 'OpenAI-compatible'), ('ollama', 'Ollama'), ('llamacpp', 'llama.cpp'), ('vllm', 'vLLM'), ('citadel', 'Citadel'), ('http', 'plain HTTP')], help_text='Empty: to be found out by asking the server.', max_length=16),
        ),
    ]
