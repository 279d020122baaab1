"""What needs an operator -> rows -> one message a kind and channel, not again for the same thing.

problems: rows, disk and certificates -> what is wrong now. message: that as text and JSON. channels: e-mail, webhook.
schedule: all of it beside the queues of the deliver role. No message holds a patient's data.
"""
