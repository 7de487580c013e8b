"""What eval/chat.py is made of. Only what a conversation with a policy needs may enter."""
