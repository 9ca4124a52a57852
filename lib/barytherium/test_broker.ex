defmodule Barytherium.TestBroker do
  @moduledoc """
  A STOMP broker on the loopback interface, for tests and experiments.

      broker = start_supervised!(Barytherium.TestBroker)
      url = "stomp://127.0.0.1:\#{Barytherium.TestBroker.port(broker)}"

  It speaks STOMP 1.0 to 1.2, with heart-beats, receipts and transactions, and accepts any login.

    * **Queues** keep what is sent to them. Subscriptions to the same queue compete: each message goes to the next one
      that has room (`prefetch-count` or `activemq.prefetchSize` in SUBSCRIBE; no limit without).
    * **Topics**, whose names begin with `/topic/`, give a copy to whoever is subscribed at that moment.
    * **Temporary queues** (`/temp-queue/...` in `reply-to`) get replies, and end with their connection:
      `Barytherium.Client.request/4` works.
    * **What is not acknowledged** when its subscription or connection ends goes to others, with `redelivered: true`.
    * **A refused message** (NACK) goes to the queue `/queue/DLQ`.
    * **After an ERROR** the connection ends, as the specification demands.

  Brokers differ in the last four, and the client adapts itself. So a test can choose which one to imitate:

  | | `like: :rabbitmq` | `like: :activemq` |
  | --- | --- | --- |
  | UNSUBSCRIBE | what is not acknowledged stays until the connection ends | goes to others |
  | ACK with `ack: client` | covers all messages of the connection | those of the subscription |
  | NACK | the message is delivered again; with `requeue:false` it goes where the header `x-dead-letter-routing-key` of SUBSCRIBE says (with an empty `x-dead-letter-exchange`), or is dropped | goes to `/queue/ActiveMQ.DLQ` if it is persistent, and is dropped if not |
  | ERROR | the connection goes on | the same |
  | temporary queues | are subscribed by the `reply-to` | have to be subscribed |
  | without a prefetch limit | none | 1,000 |

  The test suite plays random scripts on it and on these brokers, RabbitMQ 3.10 and ActiveMQ Classic 5.17, and each
  connection gets the same. Where they are known to differ:

    * it has no wildcards, exchanges, durable subscriptions, selectors, priorities and expiry;
    * texts of errors, and ids. Its message ids change with each delivery, ActiveMQ's do not;
    * RabbitMQ sends receipts when it is ready, and takes what a cumulative ACK or NACK covers subscription by
      subscription, so that another one may have room first;
    * in ActiveMQ an acknowledgement makes room for the next message before its transaction is committed. It keeps
      persistent messages of a queue and others apart. If a connection ends that is subscribed to a queue twice, one
      subscription gets what the other had.

  It can also play what was recorded from a real broker, see the option `:replay`:

      start_supervised!({Barytherium.TestBroker, replay: "feed.rec"})

  ## Assertions

  `assert_published/4` and `assert_acked/4` wait for something that clients have done, and return the frame:

      frame = Barytherium.TestBroker.assert_published(broker, "/queue/orders", "17")
      Barytherium.TestBroker.assert_acked(broker, "/queue/trains", &(&1.body =~ "2B45"))

  ## Faults

  See `fault/2`.
  """
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Frame, Recording}
  alias Barytherium.TestBroker.{Journal, Replay, Server}

  @timeout 5_000

  @type option ::
          {:port, :inet.port_number()}
          | {:like, :rabbitmq | :activemq}
          | {:rate, non_neg_integer()}
          | {:body, binary()}
          | {:heart_beat, {non_neg_integer(), non_neg_integer()}}
          | {:replay, Path.t()}
          | {:speed, number() | :infinity}
          | {:from, DateTime.t()}

  @type fault ::
          :close
          | {:close, pos_integer()}
          | :silence
          | {:delay, non_neg_integer()}
          | {:error, String.t()}
          | {:refuse, Frame.frame_command(), String.t()}

  @commands [:stomp, :connect, :disconnect, :send, :subscribe, :unsubscribe, :ack, :nack] ++
              [:begin, :commit, :abort]

  @options [
    port: "a port",
    like: ":rabbitmq or :activemq",
    rate: "a number of messages",
    body: "a binary",
    heart_beat: "{milliseconds, milliseconds}",
    replay: "a path",
    speed: "a number above 0, or :infinity",
    from: "a DateTime"
  ]

  @doc """
  Starts a broker.

    * `:port` - the port to listen on. `{:error, :eaddrinuse}` if it is taken. Default: 0, any free port; see
      `port/1`;
    * `:like` - the broker to imitate, see above. Default: none of them;
    * `:rate` - messages per second that the broker sends to each subscription by itself. They are in no queue, and
      need no acknowledgement. Default: 0, none;
    * `:body` - the body of these messages. Default: 256 bytes of text;
    * `:heart_beat` - the intervals in milliseconds at which the broker can send and wants to receive
      heart-beats. Default: `{1000, 1000}`;
    * `:replay` - a recording, see `mix barytherium.record`. Each subscription to a destination of the recording gets its
      messages, from the first one on. They are in no queue, and need no acknowledgement. The broker imitates the one
      that was recorded, unless `:like` is given. `{:error, {:replay, reason}}` if the file cannot be read, or is no
      recording;
    * `:speed` - how many times as fast the recording is played as it was recorded. Default: `:infinity`, as fast as the
      client takes it;
    * `:from` - a `DateTime`: leaves out what was recorded before.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(opts \\ []) do
    opts = Keyword.validate!(opts, Keyword.keys(@options))

    for {name, value} <- opts, value != nil and not valid?(name, value) do
      raise ArgumentError, "#{name}: is #{@options[name]}, not #{inspect(value)}"
    end

    if opts[:replay] == nil and (opts[:speed] || opts[:from]),
      do: raise(ArgumentError, "speed: and from: are for replay:")

    if opts[:replay] && opts[:rate], do: raise(ArgumentError, "rate: is not for a replay")
    with {:ok, opts} <- replay(opts[:replay], opts), do: Server.start_link(opts)
  end

  defp valid?(:port, port), do: port in 0..65_535
  defp valid?(:like, like), do: like in [:rabbitmq, :activemq]
  defp valid?(:rate, rate), do: is_integer(rate) and rate >= 0
  defp valid?(:heart_beat, {a, b}), do: is_integer(a) and is_integer(b) and a >= 0 and b >= 0
  defp valid?(:heart_beat, _other), do: false
  defp valid?(:speed, speed), do: speed == :infinity or (is_number(speed) and speed > 0)
  defp valid?(:from, from), do: is_struct(from, DateTime)
  defp valid?(name, value) when name in [:body, :replay], do: is_binary(value)

  defp replay(nil, opts), do: {:ok, opts}

  defp replay(path, opts) do
    case Recording.check(path) do
      :ok ->
        replay = %{path: path, speed: opts[:speed] || :infinity, from: opts[:from] || 0}
        opts = Keyword.put_new_lazy(opts, :like, fn -> Replay.like(path) end)
        {:ok, Keyword.put(opts, :replay, replay)}

      {:error, reason} ->
        {:error, {:replay, reason}}
    end
  end

  @doc false
  def child_spec(opts),
    do: %{id: __MODULE__, start: {__MODULE__, :start_link, [opts]}, restart: :temporary}

  @doc "Returns the port that the broker listens on."
  @spec port(GenServer.server()) :: :inet.port_number()
  def port(broker), do: GenServer.call(broker, :port)

  @doc """
  Waits until a client is subscribed to `destination`, for at most `timeout` milliseconds. Then it exits, as
  `GenServer.call/3` does.
  """
  @spec await_subscription(GenServer.server(), String.t(), timeout()) :: :ok
  def await_subscription(broker, destination, timeout \\ @timeout) when is_binary(destination),
    do: Server.await(broker, {:subscribed, destination}, timeout)

  @doc """
  Waits until messages were published to `destination`, and each of them is acknowledged or refused, for at most
  `timeout` milliseconds. Then it exits, as `GenServer.call/3` does: also if nobody got one, or only subscriptions with
  `ack: :auto`. What a subscription to a topic had not acknowledged when it ended is lost, and not waited for.
  """
  @spec await_acknowledgements(GenServer.server(), String.t(), timeout()) :: :ok
  def await_acknowledgements(broker, destination, timeout \\ @timeout)
      when is_binary(destination),
      do: Server.await(broker, {:settled, destination}, timeout)

  @doc "Publishes `body` to `destination`."
  @spec publish(GenServer.server(), binary(), binary(), Frame.frame_headers()) :: :ok
  def publish(broker, destination, body, headers \\ [])
      when is_binary(destination) and is_binary(body) and is_list(headers),
      do: GenServer.call(broker, {:publish, destination, headers, body})

  @doc """
  Waits until a client has sent a message to `destination`, and returns its SEND frame. In a transaction it counts from
  COMMIT on.

  `expected` is the body, or a function of the frame that returns whether it is the one. As with `assert_receive`, each
  message is found once: two assertions need two messages. The broker remembers the last 10,000.

  Raises `ExUnit.AssertionError` after `timeout` milliseconds, with the messages that there were instead.
  """
  @spec assert_published(
          GenServer.server(),
          binary(),
          binary() | (Frame.t() -> as_boolean(term())),
          timeout()
        ) :: Frame.t()
  def assert_published(broker, destination, expected, timeout \\ 1_000),
    do: assert_noted(broker, :published, destination, expected, timeout)

  @doc """
  Waits until a client has acknowledged a message from `destination`, and returns the MESSAGE frame, with its `destination`
  header and those that its publisher gave it. The rest is as with `assert_published/4`. For refused messages look into
  the queue for dead letters.
  """
  @spec assert_acked(
          GenServer.server(),
          binary(),
          binary() | (Frame.t() -> as_boolean(term())),
          timeout()
        ) :: Frame.t()
  def assert_acked(broker, destination, expected, timeout \\ 1_000),
    do: assert_noted(broker, :acked, destination, expected, timeout)

  @doc """
  Lets something go wrong.

    * `:close` - the connections are closed at once;
    * `{:close, n}` - each is closed when it has sent `n` more frames;
    * `:silence` - the connections stay open, and nothing is sent or answered any more, not even heart-beats;
    * `{:delay, ms}` - the connections send everything `ms` milliseconds later;
    * `{:error, message}` - each connection gets an ERROR with this `message` header;
    * `{:refuse, command, message}` - the next frame with this command, for example `:connect`, `:subscribe` or `:send`,
      is answered with such an ERROR and does nothing.

  Without a connection the second to the fourth are for the next one.
  """
  @spec fault(GenServer.server(), fault()) :: :ok
  def fault(broker, fault) do
    unless fault?(fault), do: raise(ArgumentError, "no such fault: #{inspect(fault)}")
    GenServer.call(broker, {:fault, fault})
  end

  defp fault?(fault) when fault in [:close, :silence], do: true
  defp fault?({:close, n}), do: is_integer(n) and n > 0
  defp fault?({:delay, ms}), do: is_integer(ms) and ms >= 0
  defp fault?({:error, message}), do: is_binary(message)
  defp fault?({:refuse, command, message}), do: command in @commands and is_binary(message)
  defp fault?(_other), do: false

  # The test's function runs here, so that the broker does not end if it raises.
  defp assert_noted(broker, kind, destination, expected, timeout)
       when is_binary(destination) and (is_binary(expected) or is_function(expected, 1)) do
    search = %{broker: broker, key: {kind, destination}, deadline: Deadline.in_ms(timeout)}

    with {:none, others} <- find(search, expected, []),
         do: failed(kind, destination, expected, timeout, others)
  end

  # `seen`: the entries that are not the one, the latest first.
  defp find(search, expected, seen) do
    wanted? = fn {_number, frame} = entry ->
      matches?(expected, frame) and take?(search, entry)
    end

    with [_ | _] = entries <- since(search, seen),
         nil <- Enum.find(entries, wanted?) do
      find(search, expected, Enum.reverse(entries, seen))
    else
      {_number, frame} -> frame
      [] -> {:none, for({_number, frame} <- Enum.reverse(seen), do: frame)}
    end
  end

  defp matches?(body, frame) when is_binary(body), do: frame.body == body
  defp matches?(function, frame), do: function.(frame)

  # Another process may have been faster.
  defp take?(search, {number, _frame}),
    do: GenServer.call(search.broker, {:take, search.key, number})

  # The entries after those that were seen. Empty if there are none until the deadline.
  defp since(search, seen) do
    last = with [{number, _frame} | _] <- seen, do: number, else: ([] -> 0)
    Server.await(search.broker, {:noted, search.key, last}, Deadline.left(search.deadline))
  catch
    :exit, {:timeout, _call} -> []
  end

  # ExUnit is there in tests, but no application of ours.
  @spec failed(Journal.kind(), binary(), term(), timeout(), [Frame.t()]) :: no_return()
  defp failed(kind, destination, expected, timeout, others) do
    message =
      "within #{timeout} ms no message #{kind_text(kind)} #{destination} that is " <>
        "#{inspect(expected)}. There were: #{inspect(others, limit: 20, printable_limit: 1_000)}"

    raise apply(ExUnit.AssertionError, :exception, [[message: message]])
  end

  defp kind_text(:published), do: "was published to"
  defp kind_text(:acked), do: "was acknowledged from"
end
