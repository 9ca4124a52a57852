defmodule Barytherium.TestBroker.Session do
  @moduledoc false
  # What the broker does with the frames of its clients, as a value: `handle/3` returns the new state, and `take/1` what
  # the connections are to do, in order.
  #
  # `like` is the broker that it imitates. nil: it does what the specification says, and where that leaves something
  # open, what ActiveMQ does.

  alias Barytherium.Frame
  alias Barytherium.TestBroker.{Queues, Temporary}

  @type like :: :rabbitmq | :activemq | nil
  @type action ::
          {:frame, Frame.frame_command(), Frame.frame_headers(), binary()}
          | {:subscribed, id :: binary(), destination :: binary()}
          | {:unsubscribed, id :: binary()}
          | :close

  # `connections`: the version and the transactions of each, the latest frame of a transaction first. `refused`: the
  # commands of which the next frame is to be refused, with the message. `published`, `acked`: the messages since the
  # last `take/1`, the latest first, as `actions`. `streams`: there are messages that are in no queue, so that
  # acknowledgements of unknown ones are no mistake.
  defstruct [
    :like,
    streams: false,
    queues: %Queues{},
    temporary: %Temporary{},
    connections: %{},
    refused: [],
    actions: [],
    published: [],
    acked: []
  ]

  @type t :: %__MODULE__{}

  @spec new(like(), boolean()) :: t()
  def new(like, streams \\ false),
    do: %__MODULE__{like: like, streams: streams, queues: %Queues{like: like}}

  @doc "The `server` header of CONNECTED. The client goes by it."
  @spec server(like()) :: binary()
  def server(:rabbitmq), do: "RabbitMQ/3.10.8"
  def server(:activemq), do: "ActiveMQ/5.17.2"
  def server(nil), do: "Barytherium.TestBroker"

  @spec connected(t(), pid(), binary()) :: t()
  def connected(state, connection, version),
    do: put_in(state.connections[connection], %{version: version, transactions: %{}})

  @spec closed(t(), pid()) :: t()
  def closed(state, connection) do
    queues = Queues.closed(state.queues, connection)
    state = %{state | temporary: Temporary.closed(state.temporary, connection)}
    deliver(%{state | connections: Map.delete(state.connections, connection)}, queues)
  end

  @spec publish(t(), binary(), Frame.frame_headers(), binary()) :: t()
  def publish(state, destination, headers, body),
    do: deliver(state, Queues.publish(state.queues, destination, headers, body))

  @doc "`{actions, published, acked, state}`, each in order."
  @spec take(t()) :: {[{pid(), action()}], [Frame.t()], [Frame.t()], t()}
  def take(%{actions: actions, published: published, acked: acked} = state) do
    {Enum.reverse(actions), Enum.reverse(published), Enum.reverse(acked),
     %{state | actions: [], published: [], acked: []}}
  end

  @doc "The message with which a frame of this command is to be refused, or nil."
  @spec refusal(t(), Frame.frame_command()) :: {binary() | nil, t()}
  def refusal(state, command) do
    case List.keytake(state.refused, command, 0) do
      {{_command, message}, refused} -> {message, %{state | refused: refused}}
      nil -> {nil, state}
    end
  end

  @doc "Handles a frame of a connection. Nothing counts after DISCONNECT, or after an ERROR that closes."
  @spec handle(t(), pid(), Frame.t()) :: t()
  def handle(%{connections: connections} = state, connection, _frame)
      when not is_map_key(connections, connection),
      do: state

  def handle(state, connection, %Frame{command: command} = frame) do
    headers = Frame.headers_to_map(frame.headers)

    with {nil, state} <- refusal(state, command),
         {:ok, state} <- frame(command, headers, frame, connection, state) do
      state = receipts(state, connection, frame, headers)
      if command == :disconnect, do: close(state, connection), else: state
    else
      {:error, message} -> error(state, connection, message, headers["receipt"])
      {message, state} -> error(state, connection, message, headers["receipt"])
    end
  end

  @doc "Sends an ERROR. By the specification the connection ends. RabbitMQ and ActiveMQ leave it open."
  @spec error(t(), pid(), binary(), binary() | nil) :: t()
  def error(state, connection, message, receipt) do
    receipt = if receipt && state.like != :rabbitmq, do: [{"receipt-id", receipt}], else: []
    state = out(state, connection, {:frame, :error, [{"message", message} | receipt], ""})
    if state.like, do: state, else: close(state, connection)
  end

  @spec close(t(), pid()) :: t()
  def close(state, connection), do: state |> out(connection, :close) |> closed(connection)

  defp frame(:subscribe, %{"destination" => destination} = headers, _frame, connection, state) do
    # Only 1.0 allows this, and RabbitMQ.
    optional = state.like == :rabbitmq or state.connections[connection].version == "1.0"
    id = headers["id"] || if(optional, do: destination)

    cond do
      id == nil ->
        {:error, "SUBSCRIBE without an id"}

      is_map_key(state.queues.subscriptions, {connection, id}) ->
        {:error, "There is a subscription #{id}"}

      state.like == :rabbitmq and String.starts_with?(destination, "/temp-queue/") ->
        {:error, "Invalid destination"}

      true ->
        with {:ok, options} <- options(state.like, headers) do
          {queue, state} = shared(destination, connection, state)
          state = out(state, connection, {:subscribed, id, destination})
          queues = Queues.subscribe(state.queues, {connection, id}, queue, options)
          {:ok, deliver(state, queues)}
        end
    end
  end

  defp frame(:unsubscribe, headers, _frame, connection, state) do
    key = {connection, id} = {connection, headers["id"] || headers["destination"]}

    if is_map_key(state.queues.subscriptions, key) do
      leave = if state.like == :rabbitmq, do: &Queues.retire/2, else: &Queues.unsubscribe/2
      {:ok, state |> out(connection, {:unsubscribed, id}) |> deliver(leave.(state.queues, key))}
    else
      {:error, "No subscription found"}
    end
  end

  defp frame(:begin, %{"transaction" => id}, _frame, connection, state) do
    if is_map_key(state.connections[connection].transactions, id) and state.like != :rabbitmq,
      do: {:error, "The transaction was already started: #{id}"},
      else: {:ok, put_in(state.connections[connection].transactions[id], [])}
  end

  defp frame(:commit, %{"transaction" => _} = headers, _frame, connection, state) do
    with {:ok, frames, state} <- end_transaction(headers, connection, state) do
      Enum.reduce_while(Enum.reverse(frames), {:ok, state}, fn frame, {:ok, state} ->
        headers = frame.headers |> Frame.headers_to_map() |> Map.delete("transaction")

        case frame(frame.command, headers, frame, connection, state) do
          {:ok, state} -> {:cont, {:ok, committed(state, connection, frame, headers)}}
          error -> {:halt, error}
        end
      end)
    end
  end

  defp frame(:abort, %{"transaction" => _} = headers, _frame, connection, state) do
    with {:ok, _frames, state} <- end_transaction(headers, connection, state), do: {:ok, state}
  end

  # It waits for the COMMIT.
  defp frame(command, %{"transaction" => id}, frame, connection, state)
       when command in [:send, :ack, :nack] do
    if is_map_key(state.connections[connection].transactions, id),
      do: {:ok, update_in(state.connections[connection].transactions[id], &[frame | &1])},
      else: {:error, "Invalid transaction id: #{id}"}
  end

  # RabbitMQ's way to send without declaring the queue.
  defp frame(
         :send,
         %{"destination" => "/amq/queue/" <> name} = headers,
         frame,
         connection,
         %{like: :rabbitmq} = state
       ),
       do: frame(:send, %{headers | "destination" => "/queue/" <> name}, frame, connection, state)

  defp frame(:send, %{"destination" => destination} = headers, frame, connection, state) do
    own = ["destination", "receipt", "content-length"] ++ transaction(state.like)
    kept = Enum.reject(frame.headers, fn {name, _value} -> name in own end)
    state = %{state | published: [frame | state.published]}
    {kept, state} = reply_to(headers["reply-to"], kept, connection, state)
    {destination, state} = shared(destination, connection, state)

    case Temporary.destination(state.temporary, destination) do
      {:ok, destination} -> {:ok, publish(state, destination, kept, frame.body)}
      # Nobody hears of it.
      :gone when state.like == :rabbitmq -> {:ok, state}
      :gone -> {:error, "The destination #{destination} does not exist"}
    end
  end

  defp frame(command, headers, _frame, connection, state) when command in [:ack, :nack] do
    case find(headers["id"] || headers["message-id"], connection, state) do
      nil when state.streams -> {:ok, state}
      nil -> {:error, "Unexpected #{command} of a message that this connection does not have"}
      delivery -> {:ok, settle(command, covered(command, delivery, state), headers, state)}
    end
  end

  defp frame(:disconnect, _headers, _frame, _connection, state), do: {:ok, state}
  defp frame(command, _headers, _frame, _connection, _), do: {:error, "Cannot #{command} this"}

  # A temporary queue of the connection by the name that all know.
  defp shared(destination, connection, state) do
    case Temporary.shared(state.temporary, state.like, connection, destination) do
      {_new, queue, temporary} -> {queue, %{state | temporary: temporary}}
      :none -> {destination, state}
    end
  end

  defp reply_to(nil, headers, _connection, state), do: {headers, state}

  defp reply_to(destination, headers, connection, state) do
    case Temporary.shared(state.temporary, state.like, connection, destination) do
      {:new, queue, temporary} when state.like == :rabbitmq ->
        {:ok, options} = options(:rabbitmq, %{})
        queues = Queues.subscribe(state.queues, {connection, destination}, queue, options)
        state = deliver(%{state | temporary: temporary}, queues)
        {Temporary.with_reply_to(headers, queue), state}

      {_known, queue, temporary} ->
        {Temporary.with_reply_to(headers, queue), %{state | temporary: temporary}}

      :none ->
        {headers, state}
    end
  end

  # RabbitMQ delivers it with this header.
  defp transaction(:rabbitmq), do: []
  defp transaction(_other), do: ["transaction"]

  defp options(like, headers) do
    dead_letters =
      with %{"x-dead-letter-exchange" => "", "x-dead-letter-routing-key" => name} <- headers,
           do: "/queue/" <> name,
           else: (_none -> nil)

    with {:ok, ack} <- ack(headers["ack"], like),
         {:ok, prefetch} <-
           prefetch(headers["prefetch-count"], headers["activemq.prefetchSize"], like),
         do: {:ok, %{ack: ack, prefetch: prefetch, dead_letters: dead_letters}}
  end

  defp ack(nil, _like), do: {:ok, "auto"}
  defp ack(ack, _like) when ack in ["auto", "client", "client-individual"], do: {:ok, ack}
  defp ack(_unknown, :activemq), do: {:ok, "auto"}
  defp ack(unknown, _like), do: {:error, "Unknown ack mode: #{unknown}"}

  # ActiveMQ's own limit, if there is no other.
  defp prefetch(_count, nil, :activemq), do: {:ok, 1_000}
  defp prefetch(_count, size, :activemq), do: limit(size)
  defp prefetch(count, _size, :rabbitmq), do: limit(count)
  defp prefetch(count, size, nil), do: limit(count || size)

  defp limit(nil), do: {:ok, :infinity}

  defp limit(text) do
    case Integer.parse(text) do
      {0, ""} -> {:ok, :infinity}
      {limit, ""} when limit > 0 -> {:ok, limit}
      _other -> {:error, "Not a prefetch limit: #{text}"}
    end
  end

  defp end_transaction(%{"transaction" => id}, connection, state) do
    case pop_in(state.connections[connection].transactions[id]) do
      {nil, _state} -> {:error, "Invalid transaction id: #{id}"}
      {frames, state} -> {:ok, frames, state}
    end
  end

  defp find(nil, _connection, _state), do: nil

  # As `message_id/2` made it.
  defp find(id, connection, state) do
    with {number, ""} <- id |> String.split("@@") |> List.last() |> Integer.parse(),
         do: Queues.delivery(state.queues, connection, number),
         else: (_other -> nil)
  end

  # With `client` it is for all before it too: those of the subscription, with RabbitMQ those of the connection. ActiveMQ
  # refuses only the one.
  defp covered(command, %{subscription: {connection, _id} = key} = delivery, state) do
    if delivery.ack == "client" and {state.like, command} != {:activemq, :nack} do
      for one <- Queues.through(state.queues, connection, delivery.number),
          state.like == :rabbitmq or one.subscription == key,
          do: one
    else
      [delivery]
    end
  end

  defp settle(:ack, deliveries, _headers, state) do
    acked =
      for %{message: message} <- deliveries do
        headers = [{"destination", message.destination} | message.headers]
        %Frame{command: :message, headers: headers, body: message.body}
      end

    state = %{state | acked: Enum.reverse(acked) ++ state.acked}
    deliver(state, Queues.settle(state.queues, deliveries))
  end

  defp settle(:nack, deliveries, headers, %{like: :rabbitmq} = state) do
    if headers["requeue"] == "false",
      do: bury(state, deliveries, & &1.dead_letters),
      else: deliver(state, Queues.give_back(state.queues, deliveries))
  end

  defp settle(:nack, deliveries, _headers, %{like: :activemq} = state) do
    bury(state, deliveries, fn %{message: message} ->
      if message.queue == message.destination and {"persistent", "true"} in message.headers,
        do: "/queue/ActiveMQ.DLQ"
    end)
  end

  defp settle(:nack, deliveries, _headers, state),
    do: bury(state, deliveries, &(&1.dead_letters || "/queue/DLQ"))

  # To the destination for dead letters, if there is one.
  defp bury(state, deliveries, destination) do
    state = deliver(state, Queues.settle(state.queues, deliveries))

    # What is refused there too is gone.
    for %{message: message} = delivery <- deliveries,
        to = destination.(delivery),
        to != message.destination,
        reduce: state do
      state -> publish(state, to, message.headers ++ death(state.like, message), message.body)
    end
  end

  defp death(:rabbitmq, %{destination: "/queue/" <> name}),
    do: [{"x-first-death-queue", name}, {"x-first-death-reason", "rejected"}]

  defp death(_like, %{destination: name}), do: [{"original-destination", name}]

  # RabbitMQ confirms a SEND of a transaction with the COMMIT.
  defp committed(%{like: :rabbitmq} = state, connection, %{command: :send}, headers),
    do: receipt(state, connection, headers["receipt"])

  defp committed(state, _connection, _frame, _headers), do: state

  defp receipts(%{like: :rabbitmq} = state, _connection, %{command: :send}, %{"transaction" => _}),
    do: state

  defp receipts(state, connection, _frame, headers),
    do: receipt(state, connection, headers["receipt"])

  defp receipt(state, _connection, nil), do: state

  defp receipt(state, connection, id),
    do: out(state, connection, {:frame, :receipt, [{"receipt-id", id}], ""})

  defp out(state, connection, action),
    do: %{state | actions: [{connection, action} | state.actions]}

  defp deliver(state, queues) do
    {deliveries, queues} = Queues.take(queues)

    Enum.reduce(deliveries, %{state | queues: queues}, fn delivery, state ->
      {connection, _id} = delivery.subscription
      out(state, connection, message(delivery, state))
    end)
  end

  defp message(%{subscription: {connection, id}, message: message} = delivery, state) do
    message_id = message_id(state.like, delivery)
    # Only 1.2 has it.
    acknowledged? = delivery.ack != "auto" and state.connections[connection].version == "1.2"
    ack = if acknowledged?, do: [{"ack", message_id}], else: []
    destination = Temporary.own(state.temporary, connection, message.destination)
    own = [{"subscription", id}, {"destination", destination}, {"message-id", message_id}]
    headers = own ++ ack ++ marks(state.like, message.redelivered) ++ message.headers
    {:frame, :message, headers, message.body}
  end

  defp message_id(:activemq, %{number: number}), do: "ID:test-broker@@#{number}"
  defp message_id(_like, %{subscription: {_, id}, number: n}), do: "T_#{id}@@session@@#{n}"

  defp marks(:rabbitmq, redelivered?), do: [{"redelivered", to_string(redelivered?)}]
  defp marks(like, true), do: [{"redelivered", "true"} | marks(like, false)]

  defp marks(:activemq, false) do
    now = System.system_time(:millisecond)
    [{"expires", "0"}, {"priority", "4"}, {"timestamp", to_string(now)}]
  end

  defp marks(nil, false), do: []
end
