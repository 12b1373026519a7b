"""What must not leave: card numbers, e-mail addresses, telephone and social security numbers. Pure.

`spoken` reads digits in words, `numbers` says which digits are a card's, `emails` knows addresses,
`scan` puts them together for a row of words, and `stream` does that to events as they come.

The well-kept libraries for text at rest, Presidio and scrubadub, see a text at a time and match
digits as they are written (Presidio loads a spaCy model besides). Here "four one double one" comes
in pieces, each word with its times, and what has gone out cannot be taken back. So the search is
ours; whether digits are a number at all is stdnum's (Luhn, social security) and phonenumbers' (the
numbering plans of the world), who keep up with it.
"""
