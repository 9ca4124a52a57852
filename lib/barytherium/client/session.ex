defmodule Barytherium.Client.Session do
  @moduledoc false
  # One connection of a client, from its CONNECTED frame on, and what is subscribed. The ids of its subscriptions
  # contain a token of the connection. The broker repeats the id in every MESSAGE, so it tells whether a message
  # came from this connection.

  alias Barytherium.Frame

  # Artemis limits bytes instead of messages. This many stand for one message.
  @artemis_message 1_024

  # 5 random bytes: two connections of the same VM with the same token are as good as impossible.
  @token_bytes 5

  @enforce_keys [:sender, :routes, :version, :dialect, :server, :token]
  defstruct [
    :sender,
    :routes,
    :version,
    :dialect,
    :server,
    :token,
    modes: %{},
    # The delays of the subscriptions that have them.
    delays: %{},
    destinations: %{},
    forgotten: MapSet.new(),
    # The destinations for replies that are subscribed to.
    replies: [],
    # Whether several handlers share the messages, by a key.
    shared?: false
  ]

  @type mode :: :auto | :client | :client_individual
  @type t :: %__MODULE__{
          sender: pid(),
          routes: Barytherium.Native.routes(),
          version: Frame.version(),
          dialect: Frame.dialect(),
          server: nil | String.t(),
          token: String.t(),
          modes: %{binary() => mode()},
          delays: %{binary() => Barytherium.Client.Feed.delays()},
          destinations: %{binary() => binary()},
          forgotten: MapSet.t(pos_integer()),
          replies: [String.t()],
          shared?: boolean()
        }

  @typedoc "A subscription as it was asked for. `number` is unique in a client."
  @type subscription :: %{
          number: pos_integer(),
          destination: String.t(),
          ack: mode(),
          prefetch: :infinity | pos_integer(),
          durable: nil | String.t(),
          headers: Frame.frame_headers() | function() | mfa(),
          called: Frame.frame_headers(),
          inflate: nil | boolean(),
          feed: Barytherium.Native.feed(),
          delays: nil | Barytherium.Client.Feed.delays(),
          max_silence: :infinity | pos_integer(),
          max_lag: :infinity | pos_integer(),
          on_silence: :report | :reconnect,
          timestamp: String.t(),
          sequence: nil | String.t() | {String.t(), pos_integer()},
          receipt: boolean()
        }

  @spec new(pid(), Barytherium.Native.routes(), Frame.t()) :: t()
  def new(sender, routes, %Frame{command: :connected} = frame) do
    %__MODULE__{
      sender: sender,
      routes: routes,
      version: Frame.version(frame),
      dialect: Frame.dialect(frame),
      server: Frame.header(frame, "server"),
      token: new_token()
    }
  end

  @spec new_token() :: String.t()
  def new_token, do: @token_bytes |> :crypto.strong_rand_bytes() |> Base.encode32(case: :lower)

  @doc """
  The SUBSCRIBE frame for the replies to requests, unless there is one. RabbitMQ subscribes to a temporary queue itself.
  """
  @spec await_replies(t(), String.t()) :: {[Frame.t()], t()}
  def await_replies(%__MODULE__{replies: replies} = session, destination) do
    temporary? = String.starts_with?(destination, "/temp-queue/")

    if destination in replies or (temporary? and rabbitmq?(session)) do
      {[], session}
    else
      id = "replies-#{session.token}-#{length(replies)}"
      headers = [{"id", id}, {"destination", destination}, {"ack", "auto"}]

      {[%Frame{command: :subscribe, headers: headers}],
       %{session | replies: [destination | replies]}}
    end
  end

  @doc "Adds a subscription. Returns its SUBSCRIBE frame."
  @spec subscribe(t(), subscription()) :: {Frame.t(), t()}
  def subscribe(%__MODULE__{} = session, subscription) do
    id = id(session, subscription)
    ack = mode_in(session, subscription.ack)

    headers =
      [
        {"id", id},
        {"destination", subscription.destination},
        {"ack", ack_header(session, ack)}
      ] ++
        prefetch(kind(session), subscription) ++
        durable(kind(session), subscription.durable) ++ headers(subscription)

    session = %{session | modes: Map.put(session.modes, id, ack)}
    session = with_delays(session, id, subscription)
    session = session |> destination(subscription.destination, id) |> forget(subscription)
    {%Frame{command: :subscribe, headers: headers}, session}
  end

  # A function for them has been called before, elsewhere.
  defp headers(%{headers: headers}) when is_list(headers), do: headers
  defp headers(%{called: headers}), do: headers

  # Without handlers there are none.
  defp with_delays(session, _id, %{delays: nil}), do: session

  defp with_delays(session, id, %{delays: delays}),
    do: %{session | delays: Map.put(session.delays, id, delays)}

  # In 1.0 a server need not say which subscription a message is for.
  defp destination(%{version: "1.0", destinations: destinations} = session, destination, id),
    do: %{session | destinations: Map.put(destinations, destination, id)}

  defp destination(session, _destination, _id), do: session

  @doc "The values of the header `subscription`, or else `destination`, of a subscription's messages."
  @spec keys(t(), subscription()) :: [binary(), ...]
  def keys(
        %__MODULE__{destinations: destinations} = session,
        %{destination: destination} = subscription
      ) do
    id = id(session, subscription)
    if match?(%{^destination => ^id}, destinations), do: [id, destination], else: [id]
  end

  # STOMP 1.0 has no `client-individual`. A broker may take it for `auto`. RabbitMQ does not.
  defp mode_in(%__MODULE__{version: "1.0"} = session, :client_individual),
    do: if(rabbitmq?(session), do: :client_individual, else: :client)

  # There cumulative ones are made of single ones, so nothing has to wait for those of other handlers.
  defp mode_in(%{shared?: true} = session, :client),
    do: if(rabbitmq?(session), do: :client_individual, else: :client)

  defp mode_in(_session, mode), do: mode

  # What the broker does not keep when the connection ends: messages that need no acknowledgement, and those
  # of a topic without a durable subscription.
  defp forget(session, %{number: number} = subscription) do
    if subscription.ack == :auto or (subscription.durable == nil and topic?(subscription)),
      do: %{session | forgotten: MapSet.put(session.forgotten, number)},
      else: session
  end

  defp topic?(%{destination: "/topic/" <> _name}), do: true
  defp topic?(%{destination: "/exchange/" <> _name}), do: true
  defp topic?(_subscription), do: false

  @doc "Whether the broker has forgotten this message of a connection that has ended."
  @spec forgotten?(nil | t(), Frame.t()) :: boolean()
  def forgotten?(nil, _message), do: false

  def forgotten?(%__MODULE__{forgotten: forgotten} = session, message) do
    case parse(session, message) do
      {number, _token} -> number in forgotten
      :error -> false
    end
  end

  @doc "Whether the broker delivers a message again that is refused with NACK, and never discards it."
  @spec requeues?(t()) :: boolean()
  def requeues?(session), do: rabbitmq?(session)

  @doc "Whether an acknowledgement in a transaction waits for its COMMIT. Artemis ignores it."
  @spec acknowledges_in_transactions?(t()) :: boolean()
  def acknowledges_in_transactions?(session), do: kind(session) in [:rabbitmq, :activemq]

  @spec rabbitmq?(t()) :: boolean()
  def rabbitmq?(%__MODULE__{} = session), do: kind(session) == :rabbitmq

  @doc "What UNSUBSCRIBE has besides, and the frames that follow it, so that the broker forgets a durable subscription."
  @spec deletion(t(), subscription()) :: {Frame.frame_headers(), [Frame.t()]}
  def deletion(session, %{durable: name} = subscription) do
    case kind(session) do
      :rabbitmq ->
        {[{"durable", "true"}, {"x-queue-name", name}], []}

      # It must not be in use any more.
      :activemq ->
        headers = [{"id", id(session, subscription)}, {"activemq.subscriptionName", name}]
        {[], [%Frame{command: :unsubscribe, headers: headers}]}

      _artemis_or_unknown ->
        {durable(kind(session), name), []}
    end
  end

  @doc "Removes a subscription. Returns its UNSUBSCRIBE frame."
  @spec unsubscribe(t(), subscription()) :: {Frame.t(), t()}
  def unsubscribe(%__MODULE__{} = session, subscription) do
    id = id(session, subscription)
    frame = %Frame{command: :unsubscribe, headers: [{"id", id}]}
    {frame, %{session | modes: Map.delete(session.modes, id)}}
  end

  @doc """
  Whether an ERROR is about a message that was on its way to a subscription when that ended. RabbitMQ sends
  one for each such message, and the connection goes on.
  """
  @spec late_message?(nil | t(), Frame.t()) :: boolean()
  def late_message?(nil, _error), do: false

  def late_message?(%__MODULE__{} = session, %Frame{headers: headers, body: body}) do
    rabbitmq?(session) and {"message", "Subscription not found"} in headers and
      String.starts_with?(body, "There is no current subscription")
  end

  @doc "The `id` header of a subscription."
  @spec id(t(), subscription()) :: String.t()
  def id(session, subscription), do: "#{subscription.number}-#{session.token}"

  @spec subscribed?(t(), subscription()) :: boolean()
  def subscribed?(session, subscription), do: is_map_key(session.modes, id(session, subscription))

  @doc "The id of the subscription of a MESSAGE. Some 1.0 servers pad their headers, or leave this one out."
  @spec subscription_id(t(), Frame.t()) :: nil | binary()
  def subscription_id(session, %Frame{headers: headers} = message) do
    case List.keyfind(headers, "subscription", 0) do
      {_name, id} -> String.trim(id)
      nil -> session.destinations[Frame.header(message, "destination")]
    end
  end

  @doc "The number of a subscription of this connection, by its id or in 1.0 its destination."
  @spec number_of(t(), binary()) :: nil | pos_integer()
  def number_of(%__MODULE__{token: token} = session, key) do
    case Integer.parse(Map.get(session.destinations, key, key)) do
      {number, "-" <> ^token} -> number
      _other -> nil
    end
  end

  @doc "The number of the subscription of a MESSAGE, if that is of this connection."
  @spec number(t(), Frame.t()) :: nil | pos_integer()
  def number(session, message), do: number_of(session, subscription_id(session, message) || "")

  defp parse(session, message), do: Integer.parse(subscription_id(session, message) || "")

  defp ack_header(_session, :auto), do: "auto"
  defp ack_header(_session, :client_individual), do: "client-individual"

  # RabbitMQ would count the messages of all subscriptions. See `Barytherium.Client.Acknowledgements`.
  defp ack_header(session, :client),
    do: if(rabbitmq?(session), do: "client-individual", else: "client")

  defp kind(%__MODULE__{server: "RabbitMQ" <> _version}), do: :rabbitmq
  defp kind(%__MODULE__{server: "ActiveMQ-Artemis" <> _version}), do: :artemis
  defp kind(%__MODULE__{server: "ActiveMQ" <> _version}), do: :activemq
  defp kind(_other), do: :unknown

  # A broker ignores headers that it does not know, so one that is not known gets them all.
  defp prefetch(_kind, %{ack: :auto}), do: []
  # Without it RabbitMQ takes the number of another subscription.
  defp prefetch(:rabbitmq, %{prefetch: :infinity}), do: [{"prefetch-count", "0"}]
  defp prefetch(_kind, %{prefetch: :infinity}), do: []
  defp prefetch(kind, %{prefetch: count}), do: prefetch_header(kind, count)

  defp prefetch_header(:rabbitmq, count), do: [{"prefetch-count", count}]
  defp prefetch_header(:activemq, count), do: [{"activemq.prefetchSize", count}]
  defp prefetch_header(:artemis, count), do: [{"consumer-window-size", count * @artemis_message}]

  defp prefetch_header(:unknown, count),
    do: Enum.flat_map([:rabbitmq, :activemq, :artemis], &prefetch_header(&1, count))

  defp durable(_kind, nil), do: []

  defp durable(:rabbitmq, name),
    do: [{"durable", "true"}, {"auto-delete", "false"}, {"x-queue-name", name}]

  defp durable(:activemq, name), do: [{"activemq.subscriptionName", name}]
  defp durable(:artemis, name), do: [{"durable-subscription-name", name}]

  defp durable(:unknown, name),
    do: Enum.flat_map([:rabbitmq, :activemq, :artemis], &durable(&1, name))
end
