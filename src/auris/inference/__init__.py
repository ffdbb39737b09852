"""A trained model in use: loading, generating, chatting, exporting, looking inside."""
