defmodule Barytherium.TlsDifferencesTest do
  # What native TLS and OTP's `:ssl` accept: the table "Differences" of the guide about TLS, and what they agree on.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias Barytherium.{Connection, Directory, OpenSSL}

  @moduletag timeout: 120_000

  @san "subjectAltName=DNS:localhost"
  @weak ["-cipher", "DEFAULT:@SECLEVEL=0"]
  @rsa ["rsa:2048"]

  # The key and the extensions of the server's certificate, arguments for its server, and both results.
  @rows [
    {"an RSA key of 1,024 bits", ["rsa:1024"], @san, @weak, :decrypt_error, :accepted},
    {"a certificate that is signed with SHA-1", @rsa, {@san, "-sha1"}, @weak, :decrypt_error,
     :accepted},
    {"an RSA-PSS key", ["rsa-pss"], @san, [], :handshake_failure, :accepted},
    {"an Ed448 key", ["ed448"], @san, [], :handshake_failure, :accepted},
    {"a name in the common name only, in a certificate of version 1", @rsa, nil, [],
     :certificate_unknown, :accepted},
    {"a name in the common name only", @rsa, "basicConstraints=CA:FALSE", [],
     :hostname_check_failed, :accepted},
    {"a wildcard directly below a top level, such as `*.example`", @rsa,
     "subjectAltName=DNS:*.example", [name: 'a.example'], :hostname_check_failed, :accepted},
    {"a certificate that is for clients only", @rsa, @san <> "\nextendedKeyUsage=clientAuth", [],
     :unsupported_certificate, :handshake_failure},
    {"a certificate with an unknown critical extension", @rsa,
     @san <> "\n1.2.3.4=critical,DER:0500", [], :certificate_unknown, :unsupported_certificate},
    {"a certificate that signs itself, and is in `cacertfile`", :self, "CA:FALSE", [], :accepted,
     :bad_certificate},
    {"the same, marked as an authority (`CA:TRUE`)", :self, "CA:TRUE", [], :bad_certificate,
     :bad_certificate},
    {"TLS 1.2 with CBC suites only", @rsa, @san,
     ~w(-tls1_2 -cipher ECDHE-RSA-AES128-SHA256:ECDHE-RSA-AES256-SHA), :handshake_failure,
     :accepted},
    {"TLS 1.2 with DHE suites only", @rsa, @san, ~w(-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256),
     :handshake_failure, :accepted},
    {"TLS 1.3 with CCM suites only", @rsa, @san, ~w(-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256),
     :handshake_failure, :accepted},
    {"the group X448 only", @rsa, @san, ~w(-curves X448), :handshake_failure, :accepted},
    {"the group secp256k1 only (TLS 1.2)", @rsa, @san, ~w(-tls1_2 -curves secp256k1),
     :handshake_failure, :accepted}
  ]

  # What they agree on.
  @same [
    {"3,072 bits and SHA-384", ["rsa:3072"], {@san, "-sha384"}, [], :accepted},
    {"SHA-512", @rsa, {@san, "-sha512"}, [], :accepted},
    {"P-256", {"P-256"}, @san, [], :accepted},
    {"P-384", {"P-384"}, @san, [], :accepted},
    {"P-521", {"P-521"}, @san, [], :accepted},
    {"Ed25519", ["ed25519"], @san, [], :accepted},
    {"X25519 only", @rsa, @san, ~w(-curves X25519), :accepted},
    {"a wildcard", @rsa, "subjectAltName=DNS:*.broker.example", [name: 'a.broker.example'],
     :accepted},
    {"secp256k1", {"secp256k1"}, @san, [], :handshake_failure},
    {"TLS 1.1", @rsa, @san, ["-tls1_1" | @weak], :protocol_version},
    {"no forward secrecy", @rsa, @san, ~w(-tls1_2 -cipher AES128-GCM-SHA256), :handshake_failure},
    {"the group P-521 only", @rsa, @san, ~w(-curves P-521), :handshake_failure},
    {"the group ffdhe2048 only", @rsa, @san, ~w(-tls1_3 -curves ffdhe2048), :handshake_failure}
  ]

  setup_all do
    directory = Directory.make!()
    authority = Path.join(directory, "ca")

    openssl(
      ["req", "-x509" | new_key(@rsa, authority, "authority")] ++ ["-out", authority <> ".pem"]
    )

    %{directory: directory, authority: authority}
  end

  for {what, key, certificate, server, native, otp} <-
        @rows ++ for({w, k, c, s, result} <- @same, do: {w, k, c, s, result, result}) do
    @row {key, certificate, server, native, otp}
    test "a server with #{what}", context do
      {key, certificate, server, native, otp} = @row
      path = certificate!(key, certificate, context)
      {name, flags} = Keyword.pop(flags(server), :name)

      options =
        [secure: true, cacertfile: trusted(key, path, context)] ++
          if(name, do: [server_name_indication: name], else: [])

      log = capture_log(fn -> assert connect(path, flags, options, :native) == native end)

      if native not in [:accepted, :protocol_version, :bad_certificate],
        do: assert(log =~ "tls: :otp")

      capture_log(fn ->
        result = connect(path, flags, options, :otp)
        # Later versions accept less.
        if System.otp_release() == "25", do: assert(result == otp)
      end)
    end
  end

  test "the guide has these rows" do
    guide = File.read!("guides/tls.md")

    for {what, _key, _certificate, _server, native, otp} <- @rows,
        do: assert(guide =~ "| #{what} | #{shown(native)} | #{shown(otp)} |")
  end

  test "a certificate that is its own authority is told what to do", context do
    path = certificate!(:self, "CA:TRUE", context)
    options = [secure: true, cacertfile: path <> ".pem"]
    log = capture_log(fn -> connect(path, [], options, :native) end)

    assert log =~
             "marked as an authority (CA:TRUE), so it cannot be a server's: make one with CA:FALSE"
  end

  defp shown(:accepted), do: "accepted"
  defp shown(reason), do: "`#{inspect(reason)}`"

  defp flags([{:name, _name}] = flags), do: flags
  defp flags(arguments), do: [arguments: arguments]

  defp trusted(:self, path, _context), do: path <> ".pem"
  defp trusted(_key, _path, %{authority: authority}), do: authority <> ".pem"

  defp connect(path, flags, options, tls) do
    files = %{server: [certfile: path <> ".pem", keyfile: path <> ".key"]}
    {_server, port} = OpenSSL.s_server(files, Keyword.get(flags, :arguments, []))

    case Connection.connect("localhost", port, [tls: tls] ++ options) do
      {:ok, socket} -> Connection.close(socket) && :accepted
      {:error, reason} -> reason
    end
  end

  # The path of a certificate and its key, without `.pem` and `.key`.
  defp certificate!(:self, constraints, %{directory: directory}) do
    path = Path.join(directory, "#{System.unique_integer([:positive])}")
    constraints = ["-addext", "basicConstraints=critical,#{constraints}", "-addext", @san]
    openssl(["req", "-x509" | new_key(@rsa, path)] ++ ["-out", path <> ".pem"] ++ constraints)
    path
  end

  defp certificate!(key, {extensions, digest}, %{directory: directory, authority: authority}) do
    path = Path.join(directory, "#{System.unique_integer([:positive])}")
    openssl(["req" | new_key(key, path)] ++ ["-out", path <> ".csr"])
    File.write!(path <> ".ext", extensions || "")
    extfile = if extensions, do: ["-extfile", path <> ".ext"], else: []
    signing = ["-CA", authority <> ".pem", "-CAkey", authority <> ".key", "-set_serial", "1"]
    files = ["-in", path <> ".csr", "-out", path <> ".pem"]
    openssl(["x509", "-req", "-days", "10", digest] ++ files ++ signing ++ extfile)
    path
  end

  defp certificate!(key, extensions, context),
    do: certificate!(key, {extensions, "-sha256"}, context)

  defp new_key(key, path, name \\ "localhost")

  defp new_key({curve}, path, name),
    do: new_key(["ec", "-pkeyopt", "ec_paramgen_curve:#{curve}"], path, name)

  defp new_key([kind | more], path, name),
    do: ["-newkey", kind, "-nodes", "-keyout", path <> ".key", "-subj", "/CN=#{name}"] ++ more

  defp openssl(arguments) do
    {output, status} = System.cmd("openssl", arguments, stderr_to_stdout: true)
    assert status == 0, output
  end
end
