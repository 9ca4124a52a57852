defmodule Barytherium.Client.State do
  @moduledoc false
  # What `Barytherium.Client.Server` knows.

  alias Barytherium.Client.{Backoff, Connection, Endpoint, Exchange, Feed, Handlers, Options}
  alias Barytherium.Client.{Requests, Session, Spool}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Frame

  @enforce_keys [
    :parent,
    :settings,
    :handlers,
    :subscriptions,
    :next_subscription,
    :backoff,
    :spool
  ]
  # `spool` is what was published without waiting.
  defstruct @enforce_keys ++
              [
                # The brokers that are left to try before the next wait, and the one in use.
                round: [],
                endpoint: nil,
                # nil while there is no attempt to connect.
                connection: nil,
                # Network processes of earlier connections, which still write what is left.
                former: %{},
                # Why the last connection, or attempt, ended, and how many attempts have failed since one succeeded.
                reason: nil,
                attempts: 0,
                connections: 0,
                requests: %Requests{},
                # Whether the user may subscribe to topics, see `Barytherium.Client.Requeue`.
                topics?: true,
                # Calls that wait for a connection, by the order in which they came.
                waiting: %{},
                next_waiting: 1,
                # A part of the ids of requests, see `Barytherium.Client.Replies`.
                token: nil,
                # Who gets copies of all frames.
                tap: nil,
                # What `Barytherium.Client.Health` has seen, if it looks.
                health: nil,
                # Who closes the client, by when, and how many milliseconds of that are for disconnecting.
                closing: nil
              ]

  @type t :: %__MODULE__{
          parent: pid(),
          settings: Options.settings(),
          handlers: Handlers.t(),
          subscriptions: %{pos_integer() => subscription()},
          next_subscription: pos_integer(),
          backoff: Backoff.t(),
          spool: nil | Spool.t(),
          round: [Endpoint.t()],
          endpoint: nil | Endpoint.t(),
          connection: nil | Connection.t(),
          former: %{pid() => true},
          reason: nil | atom() | Frame.t(),
          attempts: non_neg_integer(),
          connections: non_neg_integer(),
          requests: Requests.t(),
          topics?: boolean(),
          waiting: %{pos_integer() => waiting()},
          next_waiting: pos_integer(),
          token: String.t(),
          tap: nil | {pid(), reference(), boolean()},
          health: nil | %{timer: reference(), kinds: [term()]},
          closing: nil | {:gen_statem.from(), Deadline.t(), timeout()}
        }

  @typedoc """
  A subscription, and the process that gets its messages: `target`, which passes them on if `pid` is on another
  node. Both are nil for a consumer's. The broker was asked for it `first` at that time, and last when it was `asked`.
  See `Barytherium.Client.Renewals` about refused ones, and `Barytherium.Client.Requeue` about `late`.
  """
  @type subscription :: %{
          required(:subscription) => Session.subscription(),
          required(:pid) => nil | pid(),
          required(:target) => nil | pid(),
          required(:monitor) => nil | reference(),
          required(:ending) => boolean(),
          optional(:first) => integer(),
          optional(:asked) => integer(),
          optional(:suspect) => true,
          optional(:refused) => true,
          optional(:pauses) => Backoff.t(),
          optional(:request) => Requests.request(),
          optional(:from) => Exchange.from(),
          optional(:unsubscribe) => %{headers: Frame.frame_headers(), delete: boolean()},
          optional(:late) => [Barytherium.Client.Acknowledgements.id()]
        }

  @typedoc "One that is not patient waits for the present attempt to connect only."
  @type waiting :: %{
          from: :gen_statem.from(),
          action: Exchange.action(),
          timer: reference(),
          patient: boolean()
        }

  @spec new(pid(), map()) :: t()
  def new(parent, settings) do
    subscriptions = Map.new(settings[:subscriptions] || %{}, &with_feed/1)

    %__MODULE__{
      parent: parent,
      settings: settings,
      handlers: nil,
      subscriptions: subscriptions,
      next_subscription: map_size(subscriptions) + 1,
      backoff: settings.backoff,
      spool: nil,
      token: Session.new_token()
    }
  end

  # The clients of a consumer have the same settings.
  defp with_feed({number, %{subscription: subscription} = entry}),
    do: {number, %{entry | subscription: Map.merge(subscription, Feed.counters(subscription))}}

  @spec session(t()) :: nil | Session.t()
  def session(%__MODULE__{connection: nil}), do: nil
  def session(%__MODULE__{connection: %{session: session}}), do: session

  @spec network(t()) :: nil | pid()
  def network(%__MODULE__{connection: nil}), do: nil
  def network(%__MODULE__{connection: %{network: network}}), do: network
end
