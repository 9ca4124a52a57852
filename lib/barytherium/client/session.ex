defmodule Barytherium.Client.Session do
  @moduledoc false
  # One connection of a client, from its CONNECTED frame on: what is subscribed, and how messages are
  # acknowledged. The ids of its subscriptions contain a token of the connection. The broker repeats
  # the id in every MESSAGE, so it tells whether a message came from this connection.

  alias Barytherium.Frame

  # Artemis limits bytes instead of messages. This many stand for one message.
  @artemis_message 1_024

  # 5 random bytes: two connections of the same VM with the same token are as good as impossible.
  @token_bytes 5

  @enforce_keys [:sender, :version, :dialect, :server, :token]
  defstruct [:sender, :version, :dialect, :server, :token, modes: %{}, forgotten: MapSet.new()]

  @type mode :: :auto | :client | :client_individual
  @type t :: %__MODULE__{
          sender: pid(),
          version: Frame.version(),
          dialect: Frame.dialect(),
          server: nil | String.t(),
          token: String.t(),
          modes: %{binary() => mode()},
          forgotten: MapSet.t(pos_integer())
        }

  @typedoc "A subscription as it was asked for. `number` is unique in a client."
  @type subscription :: %{
          number: pos_integer(),
          destination: String.t(),
          ack: mode(),
          prefetch: :infinity | pos_integer(),
          durable: nil | String.t(),
          headers: Frame.frame_headers()
        }

  @spec new(pid(), Frame.t()) :: t()
  def new(sender, %Frame{command: :connected} = frame) do
    token = @token_bytes |> :crypto.strong_rand_bytes() |> Base.encode32(case: :lower)

    %__MODULE__{
      sender: sender,
      version: Frame.version(frame),
      dialect: Frame.dialect(frame),
      server: Frame.header(frame, "server"),
      token: token
    }
  end

  @doc "Adds a subscription. Returns its SUBSCRIBE frame."
  @spec subscribe(t(), subscription()) :: {Frame.t(), t()}
  def subscribe(%__MODULE__{} = session, subscription) do
    id = id(session, subscription)
    ack = mode_in(session.version, subscription.ack)

    headers =
      [
        {"id", id},
        {"destination", subscription.destination},
        {"ack", ack_header(ack)}
      ] ++
        prefetch(kind(session), subscription) ++
        durable(kind(session), subscription.durable) ++ subscription.headers

    session = %{session | modes: Map.put(session.modes, id, ack)}
    {%Frame{command: :subscribe, headers: headers}, forget(session, subscription)}
  end

  # STOMP 1.0 has no `client-individual`. A broker may take it for `auto`.
  defp mode_in("1.0", :client_individual), do: :client
  defp mode_in(_version, mode), do: mode

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

  def forgotten?(%__MODULE__{forgotten: forgotten}, message) do
    case parse(message) do
      {number, _token} -> number in forgotten
      :error -> false
    end
  end

  @doc "Whether the broker delivers a message again that is refused with NACK, and never discards it."
  @spec requeues?(t()) :: boolean()
  def requeues?(%__MODULE__{version: version} = session),
    do: version != "1.0" and kind(session) == :rabbitmq

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
    kind(session) == :rabbitmq and {"message", "Subscription not found"} in headers and
      String.starts_with?(body, "There is no current subscription")
  end

  @doc "The `id` header of a subscription."
  @spec id(t(), subscription()) :: String.t()
  def id(session, subscription), do: "#{subscription.number}-#{session.token}"

  @spec subscribed?(t(), subscription()) :: boolean()
  def subscribed?(session, subscription), do: is_map_key(session.modes, id(session, subscription))

  @doc "The id of the subscription of a MESSAGE. Some 1.0 servers pad their headers."
  @spec subscription_id(Frame.t()) :: nil | binary()
  def subscription_id(%Frame{headers: headers}) do
    with {_name, id} <- List.keyfind(headers, "subscription", 0), do: String.trim(id)
  end

  @doc "The number of the subscription of a MESSAGE, if that is of this connection."
  @spec number(t(), Frame.t()) :: nil | pos_integer()
  def number(%__MODULE__{token: token}, message) do
    case parse(message) do
      {number, "-" <> ^token} -> number
      _other -> nil
    end
  end

  defp parse(message), do: (subscription_id(message) || "") |> Integer.parse()

  defp ack_header(:auto), do: "auto"
  defp ack_header(:client), do: "client"
  defp ack_header(:client_individual), do: "client-individual"

  defp kind(%__MODULE__{server: "RabbitMQ" <> _version}), do: :rabbitmq
  defp kind(%__MODULE__{server: "ActiveMQ-Artemis" <> _version}), do: :artemis
  defp kind(%__MODULE__{server: "ActiveMQ" <> _version}), do: :activemq
  defp kind(_other), do: :unknown

  # A broker ignores headers that it does not know, so one that is not known gets them all.
  defp prefetch(_kind, %{ack: :auto}), do: []
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

  @doc """
  The frames that acknowledge `messages`, which may be of several subscriptions. `extra` are further
  headers.

  `:stale`: a message came from another connection, or its subscription has ended. `:auto`: its
  subscription does not ask for acknowledgements. `:unsupported`: STOMP 1.0 has no NACK.
  """
  @spec acknowledge(t(), :ack | :nack, [Frame.t()], Frame.frame_headers()) ::
          {:ok, [Frame.t()]} | {:error, :stale | :auto | :unsupported}
  def acknowledge(%__MODULE__{version: "1.0"}, :nack, _messages, _extra),
    do: {:error, :unsupported}

  def acknowledge(%__MODULE__{} = session, command, messages, extra) do
    modes = Enum.map(messages, &mode(session, &1))

    cond do
      :error in modes -> {:error, :stale}
      :auto in modes -> {:error, :auto}
      true -> {:ok, coalesce(session, command, Enum.zip(modes, messages), extra)}
    end
  end

  defp mode(session, %Frame{command: :message} = message) do
    with {:ok, mode} <- Map.fetch(session.modes, subscription_id(message)) do
      if Frame.acknowledgeable?(message, session.version), do: mode, else: :auto
    end
  end

  defp mode(_session, _other), do: :error

  # With `ack: :client` one for the last message of a subscription covers all of them.
  defp coalesce(session, command, messages, extra) do
    {cumulative, single} = Enum.split_with(messages, &match?({:client, _message}, &1))

    last =
      cumulative
      |> Enum.reverse()
      |> Enum.uniq_by(fn {_mode, message} -> subscription_id(message) end)
      |> Enum.reverse()

    for {_mode, message} <- last ++ single, do: acknowledgement(session, command, message, extra)
  end

  @doc """
  The frame that acknowledges one message. `nil` if there is none: the message lacks the header for it, or
  it is a NACK in STOMP 1.0.
  """
  @spec acknowledgement(t(), :ack | :nack, Frame.t(), Frame.frame_headers()) :: nil | Frame.t()
  def acknowledgement(%__MODULE__{version: "1.2"}, command, message, extra) do
    # `Frame.ack/3` would raise. This is faster than to ask before.
    case List.keyfind(message.headers, "ack", 0) do
      {_name, id} -> %Frame{command: command, headers: [{"id", id} | extra]}
      nil -> nil
    end
  end

  def acknowledgement(%__MODULE__{version: "1.0"}, :nack, _message, _extra), do: nil

  def acknowledgement(%__MODULE__{version: version}, command, message, extra) do
    if Frame.acknowledgeable?(message, version),
      do: apply(Frame, command, [message, version, extra])
  end
end
