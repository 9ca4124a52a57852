defmodule Barytherium.Client do
  @moduledoc """
  A client that stays connected to a broker, or to one of several.

      children = [
        {Barytherium.Client, url: "stomp://guest:guest@localhost", name: MyApp.Stomp}
      ]

      :ok = Barytherium.Client.publish(MyApp.Stomp, "/queue/a", "hello")

  It connects in the background, notices when the connection ends, and connects again after a wait that
  doubles with each failure. It subscribes anew before anything else is written. To handle the messages
  of a feed, `Barytherium.Consumer` is the easier way; this module is below it.

  ## Errors

  Functions return `{:error, error}` with a `Barytherium.Error`, whose `:reason` tells what has happened, and whether
  the broker may have carried the request out.

  ## Events

  The process of the option `:listener` gets these messages:

    * `{:barytherium, :client, {{:connected, info}, client}}` - `info` is a map with `:endpoint`,
      `:version`, `:server`, `:client`, and the `:headers` of CONNECTED;
    * `{:barytherium, :client, {{:disconnected, error}, client}}` - a connection has ended;
    * `{:barytherium, :client, {{:connection_failure, error}, client}}` - an attempt to connect has
      failed;
    * `{:barytherium, :client, {{:error, frame}, client}}` - the broker has sent an ERROR frame;
    * `{:barytherium, :client, {{:subscription_failed, %{destination: destination, error: error}}, client}}` -
      a subscription could not be made on a new connection;
    * `{:barytherium, :client, {{:not_published, %{frame: frame, error: error}}, client}}` - a message that was to be kept
      (option `:spool`) is given up: the broker refuses it. `frame` is its SEND frame;
    * `{:barytherium, :client, {{:health, problems}, client}}` - what `health/1` says has changed, for a client that
      has limits;
    * `{:barytherium, :client, {{:message, frame}, client}}` - the broker has sent a message that belongs
      to no subscription: the answer in a temporary queue of RabbitMQ, for example. Without a listener it
      is dropped, and logged.

  `error` is a `Barytherium.Error`. `Barytherium.Telemetry` has the same events.
  """

  alias Barytherium.Client.{Options, Outbound, Server, Transaction}
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Error, Frame, Network, Schema, Secret, Telemetry}
  alias Barytherium.Network.Sender

  # Milliseconds that a request may take, unless its options say otherwise.
  @timeout 5_000

  # Milliseconds by which an answer may be late on a busy machine.
  @margin 1_000

  # `publish_many/3` writes up to this many messages and about this many bytes, or one larger message, and
  # then waits for their receipts. More bytes would not be written faster, and would hold up others.
  @chunk 256
  @chunk_bytes 1024 * 1024

  @type client :: GenServer.server()

  @typedoc "What `subscribe/3` returns, and what its messages name."
  @opaque subscription :: {pid(), pos_integer()}

  @typedoc "A message for `publish_many/3`: its destination, its body, and further headers."
  @type message :: {String.t(), iodata()} | {String.t(), iodata(), Frame.frame_headers()}

  @type publish_option ::
          {:headers, Frame.frame_headers()}
          | {:content_length, boolean()}
          | {:persistent, boolean()}
          | {:receipt, boolean()}
          | {:timeout, non_neg_integer()}
          | {:wait, boolean()}

  @type publish_async_option ::
          {:headers, Frame.frame_headers()}
          | {:content_length, boolean()}
          | {:persistent, boolean()}
          | {:timeout, non_neg_integer()}
          | {:to, pid() | :nobody}

  @type ack_option :: {:receipt, boolean()} | {:timeout, non_neg_integer()}

  @typedoc """
    * `:state` - `:connected`, `:connecting`, `:disconnected` (it waits before the next attempt) or
      `:closing`;
    * `:endpoint` - the broker that is used, or was tried last, as a URL without credentials;
    * `:version`, `:server` - of the connection, or `nil`;
    * `:error` - why the last connection or attempt ended, or `nil`;
    * `:failures` - waits since a connection lasted;
    * `:connections` - connections so far;
    * `:subscriptions` - subscriptions that are kept up;
    * `:unconfirmed` - requests whose receipts have not arrived;
    * `:publishing` - calls of `publish_async/4` and `publish_many_async/3` that were accepted and have no result yet,
      with those of earlier clients that are in the files of the option `:spool`;
    * `:network` - the `Barytherium.Network` of the connection, or `nil`.
  """
  @type status :: %{
          state: :connected | :connecting | :disconnected | :closing,
          endpoint: nil | String.t(),
          version: Frame.version(),
          server: nil | String.t(),
          error: nil | Error.t(),
          failures: non_neg_integer(),
          connections: non_neg_integer(),
          subscriptions: non_neg_integer(),
          unconfirmed: non_neg_integer(),
          publishing: non_neg_integer(),
          network: nil | pid()
        }

  @doc """
  Starts a client. It returns at once, and connects in the background.

  ## Options

    * `:name` - a name for the client, as for `GenServer.start_link/3`.
  #{Options.docs()}

  The other options are those of `Barytherium.Network.start_link/4`: `:connect_timeout`, for example.

  Raises `ArgumentError` for invalid options.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    {name, opts} = pop_name(opts)
    start_server(name, Options.settings!(opts))
  end

  defp pop_name(opts) do
    {names, opts} = opts |> Schema.effective() |> Enum.split_with(&match?({:name, _name}, &1))

    case names do
      [] ->
        {nil, opts}

      [{:name, name}] when is_atom(name) ->
        {name, opts}

      [{:name, {:global, _} = name}] ->
        {name, opts}

      [{:name, {:via, _, _} = name}] ->
        {name, opts}

      _other ->
        raise ArgumentError, "option :name is an atom, {:global, term} or {:via, module, term}"
    end
  end

  @doc false
  # With `:consumer` and `:subscriptions` in the settings, for `Barytherium.Consumer`.
  @spec start_server(nil | term(), map()) :: GenServer.on_start()
  # The server links itself to the caller. See `Barytherium.Network.start_link/4`.
  def start_server(nil, settings), do: :gen_statem.start(Server, {self(), settings}, [])

  def start_server(name, settings) when is_atom(name),
    do: :gen_statem.start({:local, name}, Server, {self(), settings}, [])

  def start_server(name, settings), do: :gen_statem.start(name, Server, {self(), settings}, [])

  # Longer than a connection may take to write what is left.
  @shutdown 15_000

  @doc "A child specification with the options of `start_link/1`."
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    {name, _opts} = pop_name(opts)

    %{
      id: name || __MODULE__,
      start: {__MODULE__, :start_child, [Secret.new(opts)]},
      restart: :transient,
      shutdown: @shutdown
    }
  end

  @doc false
  # A supervisor's reports show the arguments.
  @spec start_child(Secret.t(keyword())) :: GenServer.on_start()
  def start_child(opts), do: start_link(Secret.reveal(opts))

  @doc """
  Sends a message (STOMP 1.2, "SEND") and waits for the broker's receipt. `:ok` means that the broker
  has it, and on a durable queue still has it after a restart: see "What a receipt is worth" in
  [Reliability](reliability.html).

  Options:

    * `:headers` - further headers. Default: `[]`;
    * `:persistent` - the header `persistent:true`, unless `:headers` has one of this name. RabbitMQ and ActiveMQ
      forget a message without it when they restart. Default: `true`;
    * `:content_length` - with `false` the message has no header `content-length`, and its body may not have a NUL.
      ActiveMQ makes a TextMessage of it then, and a BytesMessage otherwise; the header `amq-msg-type`, `text` or
      `bytes`, decides too, whatever the length. Default: `true`;
    * `:timeout` - milliseconds that all of it may take. Default: 5,000;
    * `:wait` - wait for a connection, if there is none, within the time-out. Default: `false`, which
      waits for an attempt to connect that is being made, as after the start, and otherwise returns `:disconnected`
      at once;
    * `:receipt` - with `false` there is no receipt. `:ok` then means that the socket has the message, and
      the reason of an error is `:unconfirmed` if it was being written when the time was over. Default: `true`.

  A callback of a `Barytherium.Consumer` may publish with the consumer's own client. The message is then sent
  before the acknowledgement of the message that is being handled.

  With a transaction in place of the client there is no receipt, and `:headers`, `:persistent` and `:content_length` are
  the only options.

  Raises `ArgumentError` for a message that cannot be written, and for invalid options.
  """
  @spec publish(client() | Transaction.t(), String.t(), iodata(), [publish_option()]) ::
          :ok | {:error, Error.t()}
  def publish(client, destination, body, opts \\ [])

  def publish(%Transaction{} = transaction, destination, body, opts) do
    options = Schema.all!(opts, message_schema())
    header = Transaction.header(transaction)

    frame = Outbound.send_frame({destination, body, options.headers}, options, [header])

    write = fn frames ->
      transaction |> Transaction.write(frames) |> not_written() |> failure()
    end

    observed(write, transaction.client, [frame])
  end

  def publish(client, destination, body, opts) do
    options = Schema.all!(opts, publish_schema() ++ message_schema())
    frame = Outbound.send_frame({destination, body, options.headers}, options)

    observed(fn frames -> client |> write(frames, options) |> without_indexes() end, client, [
      frame
    ])
  end

  # Returns what `write` does, and emits events about it; that of its end with `report`.
  defp observed(write, client, frames, report \\ &Telemetry.publish/4) do
    started = System.monotonic_time()
    Telemetry.publish_start(client, frames, started)
    frames = Outbound.with_configured_headers(frames)
    ended = &report.(client, frames, started, &1)
    result = or_exit(fn -> write.(frames) end, ended)
    ended.(summary(result))
    result
  end

  defp summary(:ok), do: :ok
  defp summary({:ok, _reply}), do: :ok
  defp summary(error), do: {:error, elem(error, 1)}

  # The events come in pairs.
  defp or_exit(write, ended) do
    write.()
  catch
    kind, reason ->
      ended.({:error, Error.new(:closed)})
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  defp message_schema, do: [headers: {:list, [], ""}] ++ frame_schema()
  defp frame_schema, do: [persistent: {:boolean, true, ""}, content_length: {:boolean, true, ""}]

  defp publish_schema do
    [
      timeout: {:time, @timeout, ""},
      wait: {:boolean, false, ""},
      receipt: {:boolean, true, ""}
    ]
  end

  defp write(client, frames, %{receipt: true} = options) do
    request = {:write, frames, options.timeout, options.wait}
    call(client, request, options.timeout)
  end

  defp write(client, frames, %{receipt: false, timeout: timeout} = options) do
    deadline = Deadline.in_ms(timeout)

    with {:ok, sender} <- ask(client, :sender, options),
         do: sender |> Sender.write_within(frames, Deadline.left(deadline)) |> not_written()
  end

  # There was no room for it.
  defp not_written({:error, :timeout}), do: {:error, :not_written}
  defp not_written(result), do: result

  defp ask(client, what, %{timeout: timeout, wait: wait}),
    do: call(client, {what, timeout, wait}, timeout)

  defp without_indexes({:error, reason, _left}), do: failure({:error, reason})
  defp without_indexes(result), do: failure(result)

  defp failure({:error, reason}), do: {:error, Error.new(reason)}
  defp failure(result), do: result

  @doc """
  Sends many messages, and waits for all receipts.

  Up to #{@chunk} messages or 1 MiB are written together, so this is much faster than `publish/4` for each.
  After `{:error, error, messages}` the broker has confirmed all messages except these, which are as
  they were given. Call the function with them again to send them once more; the broker may then have some
  of them twice.

  Options are `:timeout` (for the messages that are written together), `:wait`, `:receipt`, `:persistent` and
  `:content_length` as for `publish/4`.
  """
  @spec publish_many(client(), [message()], [publish_option()]) ::
          :ok | {:error, Error.t(), [message()]}
  def publish_many(client, messages, opts \\ []) do
    options = Schema.all!(opts, publish_schema() ++ frame_schema())
    Outbound.check_list!(messages)
    frames = Enum.map(messages, &Outbound.send_frame(&1, options))
    observed(&write_chunks(client, &1, messages, options), client, frames)
  end

  defp write_chunks(_client, [], [], _options), do: :ok

  defp write_chunks(client, frames, messages, options) do
    count = chunk(frames, 0, 0)
    {chunk, frames} = Enum.split(frames, count)
    {now, later} = Enum.split(messages, count)

    case write(client, chunk, options) do
      :ok -> write_chunks(client, frames, later, options)
      {:error, reason} -> {:error, Error.new(reason), messages}
      {:error, reason, left} -> {:error, Error.new(reason), pick(now, left) ++ later}
    end
  end

  # How many of these frames are written together.
  defp chunk([%{body: body} | frames], count, bytes) when count < @chunk do
    bytes = bytes + byte_size(body)
    if count > 0 and bytes > @chunk_bytes, do: count, else: chunk(frames, count + 1, bytes)
  end

  defp chunk(_frames, count, _bytes), do: count

  defp pick(messages, indexes) do
    indexes = MapSet.new(indexes)
    for {message, index} <- Enum.with_index(messages), index in indexes, do: message
  end

  @doc """
  Sends a message, and does not wait for the receipt: the result comes as a message.

      {:ok, reference} = Barytherium.Client.publish_async(client, "/queue/a", "hello")

      receive do
        {:barytherium, :published, {^reference, :ok}} -> :confirmed
        {:barytherium, :published, {^reference, {:error, error}}} -> {:failed, error}
      end

  `{:ok, reference}` means that the client has accepted the message. It does while its messages without a result fit into
  the option `:publish_window` of `start_link/1`; otherwise this waits for room, for `:timeout` milliseconds at most, and
  then returns an error with the reason `:not_written`. So whoever publishes is never faster than the broker for long.
  Messages are written in the order in which they are accepted. `flush/2` waits for the results.

  What is accepted and not confirmed when the connection ends gets an error with the reason `:unconfirmed`, or
  `:disconnected` if it was not written. With the option `:spool` of `start_link/1` it is kept instead, and sent once more
  on the next connection, from the first message that is not confirmed on, in the same order: each message gets to the
  broker at least once. Messages are then accepted without a connection, too. See
  [Publishing without waiting](patterns.html#publishing-without-waiting).

  Otherwise the result comes when the broker has confirmed the message, however long that takes. If the client ends,
  results may be missing, so monitor it; with files they may come twice.

  Options are `:headers`, `:persistent` and `:content_length` as for `publish/4`, and

    * `:timeout` - milliseconds to wait for room. Default: 5,000;
    * `:to` - the process that gets the result, or `:nobody`. Default: the caller. In a consumer's callback that is the
      process of the callback, which gets it in `handle_info/2`.

  Errors that are returned, with these reasons:

    * `:not_written` - there was no room in time. The message is not accepted;
    * `:disconnected` - there is no connection, and no spool, or the client closes. The message is not accepted;
    * `:enospc`, and others of the file system - the message cannot be written to the files. It is not accepted;
    * `:timeout`, `:unconfirmed` - the disk does not answer, or the client has ended meanwhile. The message may be accepted.

  Raises `ArgumentError` for a message that cannot be written, for invalid options, and in a transaction.
  """
  @spec publish_async(client(), String.t(), iodata(), [publish_async_option()]) ::
          {:ok, reference()} | {:error, Error.t()}
  def publish_async(client, destination, body, opts \\ []) do
    refuse_transaction!(client)
    options = Schema.all!(opts, async_schema() ++ message_schema())
    frame = Outbound.send_frame({destination, body, options.headers}, options)
    accept(client, [frame], :one, options)
  end

  @doc """
  Sends many messages like `publish_async/4`, which are accepted together, and have one result:

      {:barytherium, :published, {reference, :ok | {:error, error, positions}}}

  `positions` are those of the messages that have failed, in the list, from 0 on; `error` is that of one of them. Messages
  that are given together are written together: lists of some hundred messages cost a fraction of single ones, and longer
  ones gain nothing. Options are those of `publish_async/4` but for `:headers`.
  """
  @spec publish_many_async(client(), [message()], [publish_async_option()]) ::
          {:ok, reference()} | {:error, Error.t()}
  def publish_many_async(client, messages, opts \\ []) do
    refuse_transaction!(client)
    options = Schema.all!(opts, async_schema() ++ frame_schema())
    Outbound.check_list!(messages)
    accept(client, Enum.map(messages, &Outbound.send_frame(&1, options)), :many, options)
  end

  defp refuse_transaction!(%Transaction{}),
    do: raise(ArgumentError, "in a transaction there is publish/4, which does not wait")

  defp refuse_transaction!(_client), do: :ok

  defp async_schema,
    do: [
      timeout: {:time, @timeout, ""},
      to: {{:is, &(is_pid(&1) or &1 == :nobody), "a pid or :nobody"}, self(), ""}
    ]

  defp accept(_client, [], :many, %{to: to}) do
    reference = make_ref()
    if to != :nobody, do: send(to, {:barytherium, :published, {reference, :ok}})
    {:ok, reference}
  end

  defp accept(client, frames, how, %{to: to, timeout: timeout}) do
    reference = make_ref()
    to = if to != :nobody, do: {to, reference, how}

    publish = fn frames ->
      {frames, size} = Outbound.publication(frames)

      with :ok <- call(client, {:publish, {to, size, frames}, timeout}, timeout),
           do: {:ok, reference}
    end

    observed(&failure(publish.(&1)), client, frames)
  end

  @doc """
  Waits until everything that the client has accepted before from `publish_async/4` and `publish_many_async/3`, in whatever
  process, has its result. With `:ok` the results of the caller are in its mailbox. What an earlier client has left in the
  files of the option `:spool` counts, too.

  Returns an error with the reason `:timeout` after `timeout` milliseconds. The messages go on.
  """
  @spec flush(client(), non_neg_integer()) :: :ok | {:error, Error.t()}
  def flush(client, timeout \\ @timeout) do
    Outbound.check_timeout!(timeout)
    client |> call({:flush, timeout}, timeout) |> failure()
  end

  @doc """
  Sends a request, and waits for the reply: a message with the `correlation-id` of the request, to the destination that
  its header `reply-to` names. `reply/4` sends one.

      {:ok, %{body: price}} = Client.request(client, "/queue/prices", "EUS to MAN")

  Replies come to a temporary queue of the connection, as RabbitMQ and ActiveMQ have it. Many requests can wait at once.
  Where a broker has no temporary queues, `:reply_to` names a queue that only this client reads. A reply that comes too
  late, or once more, is dropped.

  If the connection ends before the reply, the result is `{:error, error}` with the reason `:unconfirmed`: somebody may
  have handled the request. No receipt is asked for, because the reply is one.

  Options are those of `publish/4` but for `:receipt`, with the default `persistent: false`, and

    * `:reply_to` - the destination of the reply. Default: `"/temp-queue/replies"`. Each one that is used is subscribed to
      until the connection ends.

  A consumer's callback may wait for a reply too, also with the consumer's own client.
  """
  @spec request(client(), String.t(), iodata(), [publish_option() | {:reply_to, String.t()}]) ::
          {:ok, Frame.t()} | {:error, Error.t()}
  def request(client, destination, body, opts \\ []) do
    if is_struct(client), do: raise(ArgumentError, "a request is not part of a transaction")
    options = Schema.all!(opts, request_schema())
    Outbound.check_request!(options.headers)
    frame = Outbound.send_frame({destination, body, options.headers}, options)

    ask = fn [frame] ->
      request = {:request, frame, options.reply_to, options.timeout, options.wait}
      client |> call(request, options.timeout) |> failure()
    end

    observed(ask, client, [frame], &Telemetry.request/4)
  end

  defp request_schema do
    destination = {:is, &reply_to?/1, "a destination"}
    own = [reply_to: {destination, "/temp-queue/replies", ""}, persistent: {:boolean, false, ""}]
    own ++ Keyword.drop(message_schema() ++ publish_schema(), [:receipt, :persistent])
  end

  defp reply_to?(name), do: is_binary(name) and name != "" and not (name =~ ~r/[\r\n\0]/)

  @doc """
  Replies to a message that asks for that with a header `reply-to`: publishes `body` there, with its `correlation-id`.
  Without the header, the result is `{:error, error}` with the reason `:no_reply_to`.

  Options are those of `publish/4`, with the default `persistent: false`. In a consumer's callback
  `Barytherium.Consumer.reply/3` does the same.
  """
  @spec reply(client() | Transaction.t(), Frame.t(), iodata(), [publish_option()]) ::
          :ok | {:error, Error.t()}
  def reply(client, %Frame{} = request, body, opts \\ []) do
    case Frame.header(request, "reply-to") do
      none when none in [nil, ""] ->
        {:error, Error.new(:no_reply_to)}

      destination ->
        id = for {"correlation-id", _id} = header <- request.headers, do: header
        {headers, opts} = Keyword.pop(opts, :headers, [])
        Outbound.check_request!(headers)
        opts = Keyword.put_new(opts, :persistent, false)
        publish(client, destination, body, [{:headers, Enum.take(id, 1) ++ headers} | opts])
    end
  end

  @doc """
  Runs `fun` with a transaction (STOMP 1.2, "BEGIN"), and commits it.

      Client.transaction(client, fn transaction ->
        :ok = Client.publish(transaction, "/queue/b", "result")
        :ok = Client.ack(transaction, message)
      end)

  Returns `{:ok, result}` with what `fun` returned when the broker has confirmed the COMMIT. If `fun`
  raises, throws or exits, the transaction is aborted, and the caller gets that. If the caller is killed, it
  is aborted too. If the connection ends before the COMMIT, the broker discards the transaction.

  Options are `:timeout` (for waiting, and for COMMIT), `:wait` and `:receipt` as for `publish/4`.
  """
  @spec transaction(client(), (Transaction.t() -> result), [publish_option()]) ::
          {:ok, result} | {:error, Error.t()}
        when result: term()
  def transaction(client, fun, opts \\ []) do
    unless is_function(fun, 1),
      do:
        raise(ArgumentError, "not a function with one argument, the transaction: #{inspect(fun)}")

    options = Schema.all!(opts, publish_schema())

    id = Transaction.new_id()
    over = :atomics.new(1, [])

    with {:ok, sender} <- ask(client, {:begin, id, over}, options) do
      transaction = Transaction.new(client, sender, {id, over}, options.timeout)
      result = Transaction.run(transaction, fun)
      committed = transaction |> commit(options) |> without_indexes()
      with :ok <- committed, do: {:ok, result}
    else
      error -> failure(error)
    end
  end

  defp commit(%Transaction{client: client, id: id, sender: sender}, %{receipt: true} = options),
    do: call(client, {:commit, id, sender, options.timeout}, options.timeout)

  defp commit(%Transaction{client: client, id: id, sender: sender}, %{timeout: timeout}) do
    with :ok <- call(client, {:commit, id, sender, :caller}, timeout) do
      written = Sender.write_within(sender, [Transaction.frame(id, :commit)], timeout)
      what = if written == {:error, :timeout}, do: :abort, else: :committed
      :gen_statem.cast(client, {what, id})
      not_written(written)
    end
  end

  @doc """
  Subscribes to a destination (STOMP 1.2, "SUBSCRIBE").

  The process of the option `:to` gets the messages, one or more MESSAGE frames together:

      {:barytherium, :messages, {frames, subscription}}

  The subscription ends with this process, and with the client, so monitor it.

  Messages go straight from the receive loop to the process, in the order in which the broker sent them. A
  process is behind when it has as many messages in its mailbox as the option `high_water_mark` says, or
  32 MiB of them. When there is more for it then, nothing is read on this connection until it has taken
  some, receipts included. With the default of `:prefetch` the broker stops before. A process that gets a
  flood of messages with `ack: :auto` should have a client of its own, and publish through another one.

  The subscription is renewed on each connection. Without a connection it is only noted, and made later.
  If the broker refuses to renew it, it is left out, and tried again after 1 s to 5 minutes. Most brokers end
  the connection when they refuse, and do not say what they refuse. The subscriptions that were not confirmed
  then are renewed one at a time on the next connection.

  ## Options

  #{Options.subscription_docs()}
  """
  @spec subscribe(client(), String.t(), keyword()) :: {:ok, subscription()} | {:error, Error.t()}
  def subscribe(client, destination, opts \\ []) do
    unless is_binary(destination) and destination != "",
      do: raise(ArgumentError, "the destination is not a string: #{inspect(destination)}")

    {to, options} = opts |> Options.subscription!() |> Map.pop!(:to)
    {timeout, options} = Map.pop!(options, :timeout)
    # Of the present connection. The next ones call the function too.
    called = Options.headers(:subscribe, options.headers)
    subscription = Map.merge(options, %{destination: destination, called: called})

    client
    |> call({:subscribe, subscription, to || self(), timeout}, timeout)
    |> refuse_consumer!()
    |> failure()
  end

  defp refuse_consumer!({:error, :consumer}) do
    raise ArgumentError,
          "this client belongs to a consumer, which subscribes and closes by itself: use its option " <>
            ":subscribe, and stop its supervisor"
  end

  defp refuse_consumer!(result), do: result

  @doc """
  Ends a subscription (STOMP 1.2, "UNSUBSCRIBE"), and waits for the receipt.

  Messages that were not acknowledged before can not be acknowledged any more; the broker delivers them to another
  subscriber. With `ack: :auto` all messages that the broker has sent are in the mailbox of the subscriber when this
  returns `:ok` while connected. Without a connection the last of them may come later.

  Options:

    * `:timeout` - milliseconds that all of it may take. Default: 5,000. A number in place of the options is a time-out
      too;
    * `:headers` - further headers of UNSUBSCRIBE. Default: `[]`;
    * `:delete` - with `true` the broker forgets a durable subscription, and what waits for it. That needs a connection
      (`:disconnected`), a subscription with `:durable` (`:not_durable`), and that the broker has not refused it
      (`:not_subscribed`); then it goes on. After `:timeout` and `:unconfirmed` it has ended here, and has to be made
      again to be deleted. Default: `false`: the broker keeps it.
  """
  @spec unsubscribe(client(), subscription(), non_neg_integer() | keyword()) ::
          :ok | {:error, Error.t()}
  def unsubscribe(client, subscription, opts \\ [])

  def unsubscribe(client, subscription, timeout) when is_integer(timeout),
    do: unsubscribe(client, subscription, timeout: timeout)

  def unsubscribe(client, subscription, opts) do
    schema = [
      timeout: {:time, @timeout, ""},
      headers: {:list, [], ""},
      delete: {:boolean, false, ""}
    ]

    {timeout, how} = opts |> Schema.all!(schema) |> Map.pop!(:timeout)
    Outbound.check_headers!(:unsubscribe, how.headers)

    client
    |> call({:unsubscribe, subscription, how, timeout}, timeout)
    |> refuse_consumer!()
    |> without_indexes()
  end

  @doc """
  Acknowledges a message or a list of messages (STOMP 1.2, "ACK").

  With `ack: :client` an acknowledgement covers all messages of the subscription before it. `:ok` means that the
  acknowledgement is about to be written. If the connection ends before the broker has read it, the broker delivers
  the message again. `:stale`: a message came on an earlier connection, or its subscription has ended.
  `:unacknowledgeable`: the broker has left out its header `ack` (`message-id` in STOMP 1.0 and 1.1). Nothing was
  written then.

  Options:

    * `:receipt` - with `true`, `:ok` means that the broker has read it: it has answered with a receipt. `:unconfirmed`
      or `:timeout`: it may have; `:unconfirmed` is also for messages that were acknowledged before. A transaction has
      the receipt of its COMMIT instead. `:unsupported` is for handlers that share messages by a key, with
      `ack: :client`. Default: `false`;
    * `:timeout` - milliseconds that the receipt may take. Default: 5,000.

  Raises `ArgumentError` for a message of a subscription with `ack: :auto`.
  """
  @spec ack(client() | Transaction.t(), Frame.t() | [Frame.t()], [ack_option()]) ::
          :ok | {:error, Error.t()}
  def ack(client, messages, opts \\ []), do: acknowledge(client, :ack, messages, [], opts)

  @doc """
  Refuses a message or a list of messages (STOMP 1.2, "NACK"). Otherwise like `ack/3`.

  What the broker does then differs: RabbitMQ delivers the message again, and with the header
  `{"requeue", "false"}` in `headers` discards it or moves it to its dead-letter exchange. ActiveMQ moves
  it to the dead-letter queue. STOMP 1.0 has no NACK (`:unsupported`), except on RabbitMQ.
  """
  @spec nack(client() | Transaction.t(), Frame.t() | [Frame.t()], Frame.frame_headers(), [
          ack_option()
        ]) :: :ok | {:error, Error.t()}
  def nack(client, messages, headers \\ [], opts \\ []),
    do: acknowledge(client, :nack, messages, headers, opts)

  defp acknowledge(client, command, messages, headers, opts) do
    options = Schema.all!(opts, receipt: {:boolean, false, ""}, timeout: {:time, @timeout, ""})
    Outbound.check_headers!(:nack, headers)

    case Outbound.check_messages!(messages) do
      [] -> :ok
      messages -> client |> acknowledge({command, messages, headers}, options) |> acknowledged()
    end
  end

  defp acknowledge(%Transaction{}, _what, %{receipt: true}),
    do: raise(ArgumentError, "in a transaction the receipt is that of COMMIT")

  defp acknowledge(
         %Transaction{client: client, id: id} = tx,
         {command, messages, headers},
         options
       ) do
    what = {command, messages, [Transaction.header(tx) | headers]}

    if Transaction.over?(tx),
      do: {:error, :transaction_over},
      else: call(client, {:acknowledge, what, {:transaction, id}}, options.timeout)
  end

  defp acknowledge(client, what, %{receipt: true, timeout: timeout}) do
    with {:error, :unconfirmed} <-
           call(client, {:acknowledge, what, {:receipt, timeout}}, timeout),
         do: {:error, :unconfirmed, []}
  end

  defp acknowledge(client, what, options),
    do: call(client, {:acknowledge, what, :written}, options.timeout)

  # The client has ended, and so has its connection.
  defp acknowledged({:error, :unconfirmed}), do: failure({:error, :stale})

  defp acknowledged({:error, :auto}) do
    raise ArgumentError,
          "a message does not ask for an acknowledgement: its subscription has ack: :auto"
  end

  defp acknowledged(result), do: without_indexes(result)

  @doc "What the client is doing."
  @spec status(client()) :: status()
  def status(client) do
    with {:error, reason} <- call(client, :status, @timeout),
         do: exit({reason, {__MODULE__, :status, [client]}})
  end

  @typedoc """
  What has come to a subscription, on all of its connections. Times are in milliseconds.

    * `:messages`, `:bytes` - messages, and the bytes of their bodies as they were sent;
    * `:idle` - since the last message was read, or `nil` if there was none;
    * `:lag` - from the time in the header `timestamp` to the arrival, of a message not long ago, or `nil`. It is as
      right as the clocks of both machines;
    * `:gaps`, `:missing` - how often numbers of the header `sequence` were left out, and how many;
    * `:repeats` - messages whose number is not after that of the one before;
    * `:to_start` - how long messages take from the socket to their callback, a `t:Barytherium.Histogram.t/0`, in
      microseconds. Of each list of messages that a handler gets, the first one is counted;
    * `:to_ack` - the same, to the writing of their acknowledgement; not if that waits for other handlers (`key:` with
      `ack: :client`). Both are `nil` without handlers, which only consumers have.
  """
  @type feed :: %{
          destination: String.t(),
          messages: non_neg_integer(),
          bytes: non_neg_integer(),
          idle: nil | non_neg_integer(),
          lag: nil | integer(),
          gaps: non_neg_integer(),
          missing: non_neg_integer(),
          repeats: non_neg_integer(),
          to_start: nil | Barytherium.Histogram.t(),
          to_ack: nil | Barytherium.Histogram.t()
        }

  @typedoc """
  What is wrong with a client. Times are in milliseconds.

    * `:not_connected`;
    * `{:not_subscribed, destination}` - the broker has refused the subscription. It is tried again;
    * `{:silent, destination, time}` - no message has come for longer than `max_silence`;
    * `{:lagging, destination, time}` - messages are older than `max_lag` when they come;
    * `{:not_handled, time}` - a handler is in the same callback for longer than `max_handling`.
  """
  @type problem ::
          :not_connected
          | {:silent | :lagging, String.t(), non_neg_integer()}
          | {:not_subscribed, String.t()}
          | {:not_handled, non_neg_integer()}

  @doc "What has come to each subscription."
  @spec feeds(client()) :: [feed()]
  def feeds(client) do
    with {:error, reason} <- call(client, :feeds, @timeout),
         do: exit({reason, {__MODULE__, :feeds, [client]}})
  end

  @doc """
  Whether all is well, for a health endpoint: `:ok`, or what is wrong. Without limits (`max_silence` and so on) that can
  only be the connection, or a subscription that is refused. Exits as `GenServer.call/3` does if there is no such client.
  """
  @spec health(client()) :: :ok | {:error, [problem(), ...]}
  def health(client) do
    case call(client, :health, @timeout) do
      [] -> :ok
      {:error, reason} -> exit({reason, {__MODULE__, :health, [client]}})
      problems -> {:error, problems}
    end
  end

  @doc """
  The counters of the connection, see `t:Barytherium.Network.stats/0`, or `nil` if there is none.
  """
  @spec stats(client()) :: nil | Network.stats()
  def stats(client) do
    with %{network: network} when network != nil <- status(client) do
      network_stats(network)
    else
      _no_connection -> nil
    end
  end

  defp network_stats(network) do
    Network.stats(network)
  catch
    # The connection has just ended.
    :exit, _reason -> nil
  end

  @doc """
  Shows all frames of a client, to see what goes over the wire. It is switched on and off while the client runs, also a
  consumer's, and costs nothing when it is off.

  With a process of the client's node, that gets

      {:barytherium, :trace, {:sent | :received, frames, connection}}

  where `connection` is a pid that tells the connections of the client apart. With `:telemetry` there is the event
  `[:barytherium, :client, :trace]` for each list of frames, emitted in a process of its own. `nil` ends it, and so does the
  end of the process. There is one at a time.

  Values of the headers of CONNECT, and of SUBSCRIBE unless it is known what they are, are left out, because they may be
  credentials. Bodies are not. Frames to the same process are in the order of the wire; heart-beats are not shown. Nothing
  waits for the process: if it is slower than the feed, its mailbox grows.
  """
  @spec trace(client(), pid() | :telemetry | nil) :: :ok
  def trace(client, to) when to in [nil, :telemetry] or is_pid(to) do
    case call(client, {:trace, to}, @timeout) do
      :ok ->
        :ok

      {:error, :another_node} ->
        raise ArgumentError, "the process is not on the node of the client: #{inspect(to)}"

      {:error, reason} ->
        exit({reason, {__MODULE__, :trace, [client]}})
    end
  end

  @doc """
  Closes the connection in an orderly way, and ends the client.

  Ends the subscriptions with `ack: :auto`, waits for all receipts, and sends a DISCONNECT. Requests that wait for a reply
  get `:unconfirmed`. Messages that were not acknowledged before are delivered again by the broker. Returns an error with
  the reason `:timeout` if that takes longer than `timeout` milliseconds. The client ends in either case. The client of a
  consumer is closed by stopping the consumer; here it raises `ArgumentError`.
  """
  @spec close(client(), non_neg_integer()) :: :ok | {:error, Error.t()}
  def close(client, timeout \\ @timeout) do
    Outbound.check_timeout!(timeout)
    pid = GenServer.whereis(client)
    result = client |> call({:close, timeout}, timeout) |> refuse_consumer!()
    if result == :ok and is_pid(pid), do: await_end(Process.monitor(pid))
    # It ended for another reason meanwhile.
    if result == {:error, :unconfirmed}, do: :ok, else: failure(result)
  end

  defp await_end(monitor) do
    receive do
      {:DOWN, ^monitor, :process, _client, _reason} -> :ok
    after
      @margin -> Process.demonitor(monitor, [:flush])
    end
  end

  # The client answers in time, unless it is being stopped: then it may wait until what is left is
  # written. An exit does not show the request, which may hold a body.
  defp call(client, request, timeout) do
    :gen_statem.call(client, request, timeout + @margin)
  catch
    :exit, {:timeout, _call} -> {:error, :timeout}
    :exit, {:noproc, _call} -> exit({:noproc, {__MODULE__, :call, [client]}})
    :exit, _ended -> {:error, :unconfirmed}
  end
end
