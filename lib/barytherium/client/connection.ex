defmodule Barytherium.Client.Connection do
  @moduledoc false
  # What a client knows of a connection, from the first attempt on.

  alias Barytherium.Client.{Session, Transactions}
  alias Barytherium.{Frame, Native}

  @enforce_keys [:greeter, :started]
  defstruct [
    # The process that fetches the credentials, and writes CONNECT.
    :greeter,
    # When the attempt began and when it succeeded, in native time units.
    :started,
    since: nil,
    network: nil,
    routes: nil,
    sender: nil,
    session: nil,
    # Why it is about to end, if this side knows: an ERROR frame or an atom. Nothing more is written then.
    verdict: nil,
    # Subscriptions that are still to be renewed, one at a time, see `Barytherium.Client.Renewals`.
    suspects: [],
    transactions: %{}
  ]

  @type t :: %__MODULE__{
          greeter: pid(),
          started: integer(),
          since: nil | integer(),
          network: nil | pid(),
          routes: nil | Native.routes(),
          sender: nil | pid(),
          session: nil | Session.t(),
          verdict: nil | atom() | Frame.t(),
          suspects: [pos_integer()],
          transactions: %{String.t() => Transactions.t()}
        }
end
